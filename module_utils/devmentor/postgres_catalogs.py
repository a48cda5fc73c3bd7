"""A primary's catalogs over its local socket: what they say of roles and databases, and statements that change it.

`postgres_objects` decides which statements those are; `postgres_quorum` waits until the replicas have them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .postgres import PostgresError
from .postgres_objects import (
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

    HAS_PSYCOPG2 = True
    ConnectError: Any = psycopg2.OperationalError
    DriverError: Any = psycopg2.Error
except ImportError:  # a fresh host in check mode
    HAS_PSYCOPG2 = False
    ConnectError = DriverError = PostgresError

SIGNATURE = "n.nspname || '.' || p.proname || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')'"


class Catalogs:
    """One connection per database, made when needed; `statements` notes what was (with `check`, would be) done."""

    def __init__(self, socket_dir: str, port: int, user: str, check: bool) -> None:
        self.socket_dir, self.port, self.user, self.check = socket_dir, port, user, check
        self.connections: dict[str, Any] = {}
        self.statements: list[str] = []

    def connect(self, database: str) -> Any:
        if database not in self.connections:
            with effective_user(self.user):
                connection = psycopg2.connect(
                    host=self.socket_dir,
                    port=self.port,
                    dbname=database,
                    user=self.user,
                    connect_timeout=5,
                    application_name="ansible postgres_objects",
                )
            connection.autocommit = True
            with connection.cursor() as cursor:
                # postgres_quorum waits for the quorum, with a limit; a commit that waits in the server has none.
                cursor.execute("SET synchronous_commit TO local")
            self.connections[database] = connection
        return self.connections[database]

    def query(self, database: str, text: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self.connect(database).cursor() as cursor:
            cursor.execute(text, values)
            found: list[Any] = cursor.fetchall()
        return found

    def execute(self, database: str, plan: Sequence[Statement], transaction: bool = True) -> None:
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
    def apply_roles(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        have = self.roles()
        plan = [one for want in wanted for one in plan_role(want, have.get(want["name"]))]
        self.execute("postgres", plan)

    def roles(self) -> dict[str, Role]:
        members: dict[str, set[str]] = {}
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
            name: Role(
                login,
                replication,
                privileged,
                limit,
                password,
                frozenset(members.get(name, ())),
                settings.get(name, {}),
            )
            for name, login, replication, privileged, limit, password in rows
        }

    # databases ---------------------------------------------------------
    def apply_databases(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        owners = dict(self.query("postgres", "SELECT datname, pg_get_userbyid(datdba) FROM pg_database"))
        for want in wanted:
            self.execute("postgres", plan_database(want, owners.get(want["name"])), transaction=False)
            exists = want["name"] in owners or not self.check
            have = self.contents(want) if exists else Contents()
            self.execute(want["name"] if exists else "postgres", plan_contents(want, have))

    def contents(self, want: Mapping[str, Any]) -> Contents:
        """What a database holds of that which is wanted in it."""
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

    def held(self, database: str, kind: str, name: str) -> frozenset[tuple[str, str]] | None:
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


@contextlib.contextmanager
def effective_user(name: str) -> Iterator[None]:
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
