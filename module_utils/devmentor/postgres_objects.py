"""Which statements bring a PostgreSQL server's roles, databases and their contents to what is wanted.

Pure: `current` is what the catalogs say, `desired` what the playbook says, the result is a list of statements. A
statement is a template, with `{}` for identifiers and `%s` for values; `postgres_catalogs` reads the catalogs and
executes the statements.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .postgres import PostgresError, quote_identifier, scram_matches, scram_verifier

_ARGUMENTS = re.compile(r"[a-z0-9_ ,\[\]]*\Z")
_TYPE = re.compile(r"[A-Za-z0-9_ ,\[\]()]+\Z")
_FUNCTION = re.compile(r"(?P<schema>[A-Za-z0-9_]+)\.(?P<name>[A-Za-z0-9_]+)\((?P<arguments>[^()]*)\)\Z")
PRIVILEGES = frozenset({"CONNECT", "CREATE", "TEMPORARY", "USAGE", "EXECUTE"})
PUBLIC = "PUBLIC"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One SQL statement. `values` are bound as literals; with `secret` they are never shown."""

    text: str
    identifiers: tuple[str, ...] = ()
    values: tuple[object, ...] = ()
    secret: bool = False

    def shown(self) -> str:
        """For logs and results."""
        text = self.text.format(*(quote_identifier(name) for name in self.identifiers))
        return text % tuple("'********'" if self.secret else repr(value) for value in self.values)


@dataclasses.dataclass(frozen=True)
class Role:
    """A row of pg_authid with its memberships and settings; `settings` as stored ("name" -> "value")."""

    login: bool
    replication: bool
    privileged: bool  # superuser, createdb, createrole or bypassrls
    connection_limit: int
    password: str | None
    member_of: frozenset[str] = frozenset()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Function:
    """What of a function is compared; `settings` as in pg_proc.proconfig."""

    body: str
    security_definer: bool
    settings: tuple[str, ...]
    owner: str


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in one database. An object that is missing from `grants` does not exist yet."""

    schemas: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> owner
    extensions: frozenset[str] = frozenset()
    functions: Mapping[str, Function] = dataclasses.field(default_factory=dict)  # signature ->
    grants: Mapping[tuple[str, str], frozenset[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    """(kind, name) -> {(role, privilege)}"""


def setting_text(value: Any) -> str:
    """A role setting as pg_db_role_setting stores it; a list is a list of names (search_path)."""
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def plan_role(want: Mapping[str, Any], have: Role | None) -> list[Statement]:
    """Statements for one role: attributes, password, memberships, settings."""
    name, limit = want["name"], want["connection_limit"]
    words = ["LOGIN" if want["login"] else "NOLOGIN", "REPLICATION" if want["replication"] else "NOREPLICATION"]
    words += ["NOSUPERUSER", "NOCREATEDB", "NOCREATEROLE", "NOBYPASSRLS", f"CONNECTION LIMIT {int(limit)}"]
    attributes = " ".join(words)
    plan = []
    if have is None:
        plan.append(Statement("CREATE ROLE {} " + attributes, (name,)))
    elif (have.login, have.replication, have.privileged, have.connection_limit) != (
        want["login"],
        want["replication"],
        False,
        limit,
    ):
        plan.append(Statement("ALTER ROLE {} " + attributes, (name,)))
    if want["password"] and not scram_matches(want["password"], have.password if have else None):
        plan.append(Statement("ALTER ROLE {} PASSWORD %s", (name,), (scram_verifier(want["password"]),), secret=True))
    for group in want["member_of"]:
        if not have or group not in have.member_of:
            plan.append(Statement("GRANT {} TO {}", (group, name)))
    for setting, value in want["settings"].items():
        if have and have.settings.get(setting) == setting_text(value):
            continue
        values = tuple(value) if isinstance(value, list) else (str(value),)
        plan.append(Statement("ALTER ROLE {} SET {} TO " + ", ".join(["%s"] * len(values)), (name, setting), values))
    return plan


def plan_database(want: Mapping[str, Any], owner: str | None) -> list[Statement]:
    """`owner` is the current one, None where the database does not exist. CREATE DATABASE runs outside transactions."""
    if owner is None:
        names = (want["name"], want["owner"])
        return [Statement("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0", names)]
    if owner != want["owner"]:
        return [Statement("ALTER DATABASE {} OWNER TO {}", (want["name"], want["owner"]))]
    return []


def plan_contents(want: Mapping[str, Any], have: Contents) -> list[Statement]:
    """Statements inside one database: schemas, extensions, functions, then privileges."""
    plan = []
    for schema in want["schemas"]:
        name, owner = schema["name"], schema["owner"]
        if name not in have.schemas:
            plan.append(Statement("CREATE SCHEMA {} AUTHORIZATION {}", (name, owner)))
        elif have.schemas[name] != owner:
            plan.append(Statement("ALTER SCHEMA {} OWNER TO {}", (name, owner)))
    plan += [Statement("CREATE EXTENSION {}", (name,)) for name in want["extensions"] if name not in have.extensions]
    for function in want["functions"]:
        plan += plan_function(function, have.functions.get(function["signature"]))
    for grant in want["grants"]:
        plan += plan_grant(grant, have.grants.get((grant["object"], grant["name"])))
    return plan


def shown_for_new_server(roles: Sequence[Mapping[str, Any]], databases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every statement, as shown in results, for a server that is not there yet (check mode): everything is new."""
    plan = [("postgres", one) for want in roles for one in plan_role(want, None)]
    for want in databases:
        owner = None if want["name"] != "postgres" else want["owner"]
        plan += [("postgres", one) for one in plan_database(want, owner)]
        plan += [(want["name"], one) for one in plan_contents(want, Contents())]
    return [f"{database}: {statement.shown()}" for database, statement in plan]


def split_signature(signature: str) -> tuple[str, str, str]:
    """Schema, name and arguments of `schema.name(type, type)`; refuses anything that is not plainly that."""
    match = _FUNCTION.match(signature)
    if not match or not _ARGUMENTS.match(match["arguments"]):
        raise PostgresError(f"{signature!r} is not a function's signature: schema.name(type, type) is wanted.")
    return match["schema"], match["name"], match["arguments"]


def plan_function(want: Mapping[str, Any], have: Function | None) -> list[Statement]:
    """CREATE OR REPLACE where body, rights, settings or owner differ."""
    schema, name, arguments = split_signature(want["signature"])
    if not _TYPE.match(want["returns"]):
        raise PostgresError(f"{want['signature']}: {want['returns']!r} is not a result type.")
    wanted = Function(want["body"], want["security_definer"], ("search_path=" + want["search_path"],), want["owner"])
    if have == wanted:
        return []
    rights = "SECURITY DEFINER" if want["security_definer"] else "SECURITY INVOKER"
    create = Statement(
        f"CREATE OR REPLACE FUNCTION {{}}.{{}}({arguments}) RETURNS {want['returns']} LANGUAGE sql STABLE {rights} "
        "SET search_path TO %s AS %s",
        (schema, name),
        (want["search_path"], want["body"]),
    )
    if have and have.owner == want["owner"]:
        return [create]
    return [create, Statement(f"ALTER FUNCTION {{}}.{{}}({arguments}) OWNER TO {{}}", (schema, name, want["owner"]))]


def plan_grant(want: Mapping[str, Any], have: frozenset[tuple[str, str]] | None) -> list[Statement]:
    """GRANT what is missing, REVOKE what is there and must not be. `have` None: the object is made in this run."""
    unknown = set(want["privileges"]) - PRIVILEGES
    if unknown:
        raise PostgresError(f"{', '.join(sorted(unknown))}: not a privilege this module knows ({sorted(PRIVILEGES)}).")
    absent = want["state"] == "absent"
    held = {privilege for role, privilege in have if role == want["role"]} if have is not None else None
    if held is None:
        todo = list(want["privileges"])
    else:
        todo = [privilege for privilege in want["privileges"] if (privilege in held) == absent]
    if not todo:
        return []
    target, identifiers = _target(want["object"], want["name"])
    role, names = (PUBLIC, identifiers) if want["role"] == PUBLIC else ("{}", (*identifiers, want["role"]))
    words = ", ".join(todo)
    if absent:
        return [Statement(f"REVOKE {words} ON {target} FROM {role}", names)]
    return [Statement(f"GRANT {words} ON {target} TO {role}", names)]


def _target(kind: str, name: str) -> tuple[str, tuple[str, ...]]:
    if kind == "function":
        schema, function, arguments = split_signature(name)
        return f"FUNCTION {{}}.{{}}({arguments})", (schema, function)
    return kind.upper() + " {}", (name,)
