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

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.devmentor.postgres import PostgresError
from ansible.module_utils.devmentor.postgres_catalogs import HAS_PSYCOPG2, Catalogs, ConnectError, DriverError
from ansible.module_utils.devmentor.postgres_objects import shown_for_new_server
from ansible.module_utils.devmentor.postgres_quorum import acknowledge, seed_quorum


def run(module):
    params = module.params
    try:
        catalogs = Catalogs(params["socket_dir"], params["port"], params["login_user"], module.check_mode)
        if not HAS_PSYCOPG2:
            raise PostgresError(missing_required_lib("psycopg2"))
        catalogs.connect("postgres")
    except (PostgresError, KeyError, ConnectError) as error:
        if module.check_mode:
            statements = shown_for_new_server(params["roles"], params["databases"])
            return {"changed": True, "statements": statements, "diff": diff(statements)}
        raise PostgresError(f"cannot connect to the server on port {params['port']}: {str(error).strip()}") from error
    if catalogs.query("postgres", "SELECT pg_is_in_recovery()")[0][0]:
        raise PostgresError("this server is a replica; objects are changed on the primary.")
    catalogs.apply_roles(params["roles"])
    catalogs.apply_databases(params["databases"])
    if catalogs.statements and not module.check_mode:
        acknowledge(catalogs, params["acknowledge_timeout"])
    if params["quorum_seed"]:
        seed_quorum(catalogs, params["quorum_seed"]["hosts"], params["quorum_seed"]["timeout"])
    rows = catalogs.query("postgres", "SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1")
    pending = [row[0] for row in rows]
    return {
        "changed": bool(catalogs.statements),
        "statements": catalogs.statements,
        "pending_restart": pending,
        "diff": diff(catalogs.statements),
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
            "roles": dicts(
                {
                    "name": text(required=True),
                    "password": text(no_log=True),
                    "login": {"type": "bool", "default": True},
                    "replication": {"type": "bool", "default": False},
                    "connection_limit": {"type": "int", "default": -1},
                    "member_of": names(),
                    "settings": {"type": "dict", "default": {}},
                }
            ),
            "databases": dicts(
                {
                    "name": text(required=True),
                    "owner": text(default="postgres"),
                    "extensions": names(),
                    "schemas": dicts({"name": text(required=True), "owner": text(required=True)}),
                    "functions": dicts(
                        {
                            "signature": text(required=True),
                            "returns": text(required=True),
                            "body": text(required=True),
                            "search_path": text(default="pg_catalog"),
                            "security_definer": {"type": "bool", "default": False},
                            "owner": text(default="postgres"),
                        }
                    ),
                    "grants": dicts(
                        {
                            "object": text(required=True, choices=["database", "schema", "function"]),
                            "name": text(required=True),
                            "role": text(required=True),
                            "privileges": {"type": "list", "elements": "str", "required": True},
                            "state": text(choices=["present", "absent"], default="present"),
                        }
                    ),
                }
            ),
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
    except (PostgresError, DriverError) as error:
        module.fail_json(msg=str(error).strip() or type(error).__name__)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
