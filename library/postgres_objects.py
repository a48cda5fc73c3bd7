#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: postgres_objects
short_description: Roles, databases, schemas, extensions, functions and privileges of a PostgreSQL server
description:
  - Brings a server's objects to what is wanted over one local connection per database, and the synchronous quorum once.
  - Runs on the primary's host, connects over the Unix socket as O(login_user) by peer authentication.
  - A password is compared with the stored SCRAM verifier and written only where it does not match, as a verifier.
  - Where synchronous replication is on, the changes are waited for on the quorum with a limit, so that a cluster
    without enough replicas gives an error instead of a hang.
options:
  port: {description: Port of the server., type: int, default: 5432}
  socket_dir: {description: Directory of its Unix socket., type: path, default: /var/run/postgresql}
  login_user: {description: Operating system and database user., type: str, default: postgres}
  roles:
    description: Roles to have. None of them is or stays a superuser.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name., type: str, required: true}
      password: {description: Plain password, printable ASCII; only its verifier is sent., type: str}
      login: {description: May log in., type: bool, default: true}
      replication: {description: May stream., type: bool, default: false}
      connection_limit: {description: Connections at a time; -1 is no limit., type: int, default: -1}
      member_of: {description: Roles it is in; others are left., type: list, elements: str, default: []}
      settings:
        description: Per-role settings; a list value is a list of names (search_path). Others are left.
        type: dict
        default: {}
  databases:
    description: Databases to have, with their contents.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name., type: str, required: true}
      owner: {description: Owner., type: str, default: postgres}
      extensions: {description: Extensions to have., type: list, elements: str, default: []}
      schemas: {description: "Schemas, each with C(name) and C(owner).", type: list, elements: dict, default: []}
      functions:
        description: SQL functions to have.
        type: list
        elements: dict
        default: []
        suboptions:
          signature: {description: "C(schema.name(type, type)).", type: str, required: true}
          returns: {description: Result type., type: str, required: true}
          body: {description: The SQL text., type: str, required: true}
          search_path: {description: Fixed search_path., type: str, default: pg_catalog}
          security_definer: {description: Runs with the owner's rights., type: bool, default: false}
          owner: {description: Owner., type: str, default: postgres}
      grants:
        description: Privileges to have, or not to have.
        type: list
        elements: dict
        default: []
        suboptions:
          object: {description: Kind., type: str, choices: [database, schema, function], required: true}
          name: {description: Name or signature., type: str, required: true}
          role: {description: A role or PUBLIC., type: str, required: true}
          privileges: {description: Privileges., type: list, elements: str, required: true}
          state: {description: Whether they are held., type: str, choices: [present, absent], default: present}
  quorum_seed:
    description:
      - Sets C(synchronous_standby_names) with ALTER SYSTEM once, when a quorum of these replicas streams. Where
        C(postgresql.auto.conf) names it already it is never touched; failover owns it from then on.
    type: dict
    suboptions:
      hosts: {description: The replicas' application names., type: list, elements: str, required: true}
      timeout: {description: Seconds to wait for the quorum to stream., type: int, default: 120}
  acknowledge_timeout:
    description: Seconds to wait until the quorum has the changes.
    type: int
    default: 30
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Have the application's role, database and schema
  postgres_objects:
    roles:
      - {name: pbml, password: "{{ vault_postgres_pbml_password }}", settings: {search_path: [pbml]}}
    databases:
      - name: devmentor
        schemas: [{name: pbml, owner: pbml}]
        grants:
          - {object: database, name: devmentor, role: PUBLIC, privileges: [CONNECT], state: absent}
          - {object: database, name: devmentor, role: pbml, privileges: [CONNECT]}
"""

RETURN = r"""
statements:
  description: What was (or would be) executed, without secrets, each with its database.
  returned: always
  type: list
  elements: str
  sample: ["postgres: CREATE ROLE \"pbml\" LOGIN ..."]
pending_restart:
  description: Settings whose new value waits for a restart.
  returned: when the server answered
  type: list
  elements: str
"""

import contextlib
import os
import pwd
import time

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.devmentor.postgres import PostgresError, quorum, quorum_names
from ansible.module_utils.devmentor.postgres_objects import (
    PUBLIC,
    Contents,
    Function,
    Role,
    Statement,
    plan_contents,
    plan_database,
    plan_role,
    split_signature,
)

try:
    import psycopg2
    from psycopg2 import sql
    ConnectError = psycopg2.OperationalError
except ImportError:  # a fresh host in check mode
    psycopg2 = None
    ConnectError = PostgresError

SIGNATURE = "n.nspname || '.' || p.proname || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')'"


class Server:
    """A server over its local socket; one connection per database, each statement noted."""

    def __init__(self, params, check):
        self.params, self.check = params, check
        self.connections = {}
        self.statements = []

    def connect(self, database):
        if database not in self.connections:
            user = self.params["login_user"]
            with effective_user(user):
                connection = psycopg2.connect(
                    host=self.params["socket_dir"], port=self.params["port"], dbname=database, user=user,
                    connect_timeout=5, application_name="ansible postgres_objects",
                )
            connection.autocommit = True
            with connection.cursor() as cursor:
                # The quorum is waited for below, with a limit; a commit that waits in the server cannot be limited.
                cursor.execute("SET synchronous_commit TO local")
            self.connections[database] = connection
        return self.connections[database]

    def query(self, database, text, values=()):
        with self.connect(database).cursor() as cursor:
            cursor.execute(text, values)
            return cursor.fetchall()

    def execute(self, database, plan, transaction=True):
        """All statements or none, where they may share a transaction."""
        self.statements += [f"{database}: {statement.shown()}" for statement in plan]
        if not plan or self.check:
            return
        connection = self.connect(database)
        with connection.cursor() as cursor:
            if transaction:
                cursor.execute("BEGIN")
            for statement in plan:
                text = sql.SQL(statement.text).format(*(sql.Identifier(name) for name in statement.identifiers))
                try:
                    cursor.execute(text, statement.values or None)
                except psycopg2.Error as error:
                    if transaction:
                        cursor.execute("ROLLBACK")
                    reason = error.diag.message_primary or type(error).__name__
                    raise PostgresError(f"{database}: {statement.shown()}: {reason}") from None
            if transaction:
                cursor.execute("COMMIT")

    # roles -------------------------------------------------------------
    def roles(self):
        members = {}
        for member, group in self.query(
            "postgres",
            "SELECT m.rolname, g.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member "
            "JOIN pg_roles g ON g.oid = a.roleid",
        ):
            members.setdefault(member, set()).add(group)
        settings = {}
        for name, entries in self.query(
            "postgres",
            "SELECT r.rolname, s.setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole "
            "WHERE s.setdatabase = 0",
        ):
            settings[name] = dict(entry.split("=", 1) for entry in entries)
        rows = self.query(
            "postgres",
            "SELECT rolname, rolcanlogin, rolreplication, rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls, "
            "rolconnlimit, rolpassword FROM pg_authid",
        )
        return {
            name: Role(login, replication, privileged, limit, password, frozenset(members.get(name, ())),
                       settings.get(name, {}))
            for name, login, replication, privileged, limit, password in rows
        }

    def apply_roles(self):
        have = self.roles()
        plan = [one for want in self.params["roles"] for one in plan_role(want, have.get(want["name"]))]
        self.execute("postgres", plan)

    # databases ---------------------------------------------------------
    def apply_databases(self):
        owners = dict(self.query("postgres", "SELECT datname, pg_get_userbyid(datdba) FROM pg_database"))
        for want in self.params["databases"]:
            self.execute("postgres", plan_database(want, owners.get(want["name"])), transaction=False)
            exists = want["name"] in owners or not self.check
            have = self.contents(want) if exists else Contents()
            self.execute(want["name"] if exists else "postgres", plan_contents(want, have))

    def contents(self, want):
        database = want["name"]
        schemas = dict(self.query(database, "SELECT nspname, pg_get_userbyid(nspowner) FROM pg_namespace"))
        extensions = frozenset(row[0] for row in self.query(database, "SELECT extname FROM pg_extension"))
        functions = {}
        for function in want["functions"]:
            schema, name, _ = split_signature(function["signature"])
            for signature, body, definer, settings, owner in self.query(
                database,
                f"SELECT {SIGNATURE}, p.prosrc, p.prosecdef, p.proconfig, pg_get_userbyid(p.proowner) "  # noqa: S608
                "FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
                "WHERE n.nspname = %s AND p.proname = %s",
                (schema, name),
            ):
                functions[signature] = Function(body, definer, tuple(settings or ()), owner)
        grants = {}
        for grant in want["grants"]:
            held = self.held(database, grant["object"], grant["name"])
            if held is not None:
                grants[(grant["object"], grant["name"])] = held
        return Contents(schemas, extensions, functions, grants)

    def held(self, database, kind, name):
        """The privileges on an object as {(role, privilege)}, None where it does not exist."""
        values = (name,)
        if kind == "database":
            source = "SELECT coalesce(datacl, acldefault('d', datdba)) FROM pg_database WHERE datname = %s"
        elif kind == "schema":
            source = "SELECT coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname = %s"
        else:
            split_signature(name)
            source = (
                "SELECT coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p "  # noqa: S608
                f"JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {SIGNATURE} = %s"
            )
        if not self.query(database, source, values):
            return None
        rows = self.query(
            database,
            f"SELECT CASE WHEN a.grantee = 0 THEN %s ELSE pg_get_userbyid(a.grantee) END, a.privilege_type "  # noqa: S608
            f"FROM aclexplode(({source})) a",
            (PUBLIC, *values),
        )
        return frozenset(rows)

    # the quorum --------------------------------------------------------
    def seeded(self):
        return bool(
            self.query(
                "postgres",
                "SELECT 1 FROM pg_file_settings WHERE name = 'synchronous_standby_names' "
                "AND sourcefile LIKE '%%/postgresql.auto.conf'",
            )
        )

    def seed_quorum(self, hosts, timeout):
        if not hosts or self.seeded():
            return
        names, needed = quorum_names(hosts), quorum(len(hosts))
        plan = [Statement("ALTER SYSTEM SET synchronous_standby_names TO %s", (), (names,))]
        if not self.check:
            deadline = time.monotonic() + timeout
            while True:
                rows = self.query(
                    "postgres", "SELECT application_name, state FROM pg_stat_replication ORDER BY application_name"
                )
                streaming = [name for name, state in rows if state == "streaming" and name in hosts]
                if len(set(streaming)) >= needed:
                    break
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"Only {sorted(set(streaming))} of the replicas {hosts} stream after {timeout} s, {needed} are "
                        "needed before commits may wait for them. Look at the replicas' log "
                        "(/var/log/postgresql/postgresql-17-main.log) and run again."
                    )
                time.sleep(0.25)
        self.execute("postgres", plan, transaction=False)
        if not self.check:
            self.query("postgres", "SELECT pg_reload_conf()")

    def acknowledge(self, timeout):
        """Waits until the quorum has what was committed here, if there is a quorum."""
        setting = self.query("postgres", "SHOW synchronous_standby_names")[0][0]
        if not setting:
            return
        needed = int(setting.split()[1]) if setting.upper().startswith(("ANY ", "FIRST ")) else 1
        lsn = self.query("postgres", "SELECT pg_current_wal_lsn()::text")[0][0]
        deadline = time.monotonic() + timeout
        while True:
            count = self.query(
                "postgres",
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('quorum', 'sync') AND flush_lsn >= %s",
                (lsn,),
            )[0][0]
            if count >= needed:
                return
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"{count} replicas have the changes after {timeout} s, {needed} are needed ({setting}). The "
                    "cluster takes no writes until enough replicas stream; start them and run again."
                )
            time.sleep(0.1)


@contextlib.contextmanager
def effective_user(name):
    """Peer authentication looks at the effective user at connect time."""
    before = os.geteuid(), os.getegid()
    entry = pwd.getpwnam(name)
    if before[0] != 0 or entry.pw_uid == 0:
        yield
        return
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])


def would_create(params):
    """Check mode before the server exists: everything is new."""
    plan = [("postgres", one) for want in params["roles"] for one in plan_role(want, None)]
    for want in params["databases"]:
        owner = None if want["name"] != "postgres" else want["owner"]
        plan += [("postgres", one) for one in plan_database(want, owner)]
        plan += [(want["name"], one) for one in plan_contents(want, Contents())]
    return [f"{database}: {statement.shown()}" for database, statement in plan]


def run(module):
    params = module.params
    try:
        server = Server(params, module.check_mode)
        if psycopg2 is None:
            raise PostgresError(missing_required_lib("psycopg2"))
        server.connect("postgres")
    except (PostgresError, KeyError, ConnectError) as error:
        if module.check_mode:
            statements = would_create(params)
            return {"changed": True, "statements": statements, "diff": diff(statements)}
        raise PostgresError(f"cannot connect to the server on port {params['port']}: {str(error).strip()}") from error
    if server.query("postgres", "SELECT pg_is_in_recovery()")[0][0]:
        raise PostgresError("this server is a replica; objects are changed on the primary.")
    server.apply_roles()
    server.apply_databases()
    if server.statements and not module.check_mode:
        server.acknowledge(params["acknowledge_timeout"])
    if params["quorum_seed"]:
        server.seed_quorum(params["quorum_seed"]["hosts"], params["quorum_seed"]["timeout"])
    rows = server.query("postgres", "SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1")
    pending = [row[0] for row in rows]
    return {
        "changed": bool(server.statements),
        "statements": server.statements,
        "pending_restart": pending,
        "diff": diff(server.statements),
    }


def diff(statements):
    return {"before": "", "after": "".join(line + "\n" for line in statements)}


def text(**more):
    return {"type": "str", **more}


def names():
    return {"type": "list", "elements": "str", "default": []}


def dicts(options=None):
    return {"type": "list", "elements": "dict", "default": [], **({"options": options} if options else {})}


def main():
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "default": 5432},
            "socket_dir": {"type": "path", "default": "/var/run/postgresql"},
            "login_user": text(default="postgres"),
            "roles": dicts({
                "name": text(required=True),
                "password": text(no_log=True),
                "login": {"type": "bool", "default": True},
                "replication": {"type": "bool", "default": False},
                "connection_limit": {"type": "int", "default": -1},
                "member_of": names(),
                "settings": {"type": "dict", "default": {}},
            }),
            "databases": dicts({
                "name": text(required=True),
                "owner": text(default="postgres"),
                "extensions": names(),
                "schemas": dicts({"name": text(required=True), "owner": text(required=True)}),
                "functions": dicts({
                    "signature": text(required=True),
                    "returns": text(required=True),
                    "body": text(required=True),
                    "search_path": text(default="pg_catalog"),
                    "security_definer": {"type": "bool", "default": False},
                    "owner": text(default="postgres"),
                }),
                "grants": dicts({
                    "object": text(required=True, choices=["database", "schema", "function"]),
                    "name": text(required=True),
                    "role": text(required=True),
                    "privileges": {"type": "list", "elements": "str", "required": True},
                    "state": text(choices=["present", "absent"], default="present"),
                }),
            }),
            "quorum_seed": {
                "type": "dict",
                "options": {
                    "hosts": {"type": "list", "elements": "str", "required": True},
                    "timeout": {"type": "int", "default": 120},
                },
            },
            "acknowledge_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except PostgresError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
