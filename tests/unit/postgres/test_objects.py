"""The statements that roles, databases and privileges take, and that a second run takes none."""

import pytest

from module_utils.devmentor.postgres import PostgresError, scram_verifier
from module_utils.devmentor.postgres_objects import (
    Contents,
    Function,
    Role,
    Statement,
    plan_contents,
    plan_database,
    plan_grant,
    plan_role,
)


def role(**more: object) -> dict:
    return {
        "name": "pbml",
        "password": "secret",
        "login": True,
        "replication": False,
        "connection_limit": -1,
        "member_of": [],
        "settings": {},
        **more,
    }


def have(**more: object) -> Role:
    values = {
        "login": True,
        "replication": False,
        "privileged": False,
        "connection_limit": -1,
        "password": scram_verifier("secret"),
        **more,
    }
    return Role(**values)


def shown(plan: list[Statement]) -> list[str]:
    return [statement.shown() for statement in plan]


def test_a_new_role_gets_everything():
    lines = shown(plan_role(role(member_of=["pg_monitor"], settings={"search_path": ["pbml"]}), None))
    assert lines == [
        'CREATE ROLE "pbml" LOGIN NOREPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS CONNECTION LIMIT -1',
        "ALTER ROLE \"pbml\" PASSWORD '********'",
        'GRANT "pg_monitor" TO "pbml"',
        'ALTER ROLE "pbml" SET "search_path" TO \'pbml\'',
    ]


def test_the_same_role_gets_nothing():
    current = have(member_of=frozenset({"pg_monitor", "other"}), settings={"search_path": "pbml, public", "x": "y"})
    assert plan_role(role(member_of=["pg_monitor"], settings={"search_path": ["pbml", "public"]}), current) == []


def test_a_changed_password_is_written_as_a_verifier_and_never_shown():
    plan = plan_role(role(password="other"), have())
    assert shown(plan) == ["ALTER ROLE \"pbml\" PASSWORD '********'"]
    assert str(plan[0].values[0]).startswith("SCRAM-SHA-256$")
    assert "other" not in str(plan[0].values)


@pytest.mark.parametrize(
    "change", [{"privileged": True}, {"login": False}, {"replication": True}, {"connection_limit": 3}]
)
def test_attributes_that_drifted_are_put_back(change):
    assert shown(plan_role(role(), have(**change)))[0].startswith('ALTER ROLE "pbml" LOGIN NOREPLICATION NOSUPERUSER')


def test_a_database_is_made_or_handed_over():
    want = {"name": "app", "owner": "postgres"}
    assert shown(plan_database(want, None))[0].startswith('CREATE DATABASE "app" OWNER "postgres"')
    assert shown(plan_database(want, "bob")) == ['ALTER DATABASE "app" OWNER TO "postgres"']
    assert plan_database(want, "postgres") == []


FUNCTION = {
    "signature": "pool.auth(text)",
    "returns": "TABLE(u name)",
    "body": "SELECT 1",
    "search_path": "pg_catalog",
    "security_definer": True,
    "owner": "postgres",
}


def contents(**more: object) -> dict:
    return {"schemas": [], "extensions": [], "functions": [], "grants": [], **more}


def test_contents_are_made_in_an_order_that_works():
    want = contents(
        schemas=[{"name": "pool", "owner": "postgres"}],
        extensions=["pg_stat_statements"],
        functions=[FUNCTION],
        grants=[
            {
                "object": "function",
                "name": "pool.auth(text)",
                "role": "PUBLIC",
                "privileges": ["EXECUTE"],
                "state": "absent",
            }
        ],
    )
    words = [line.split('"')[0].strip() for line in shown(plan_contents(want, Contents()))]
    assert words == [
        "CREATE SCHEMA",
        "CREATE EXTENSION",
        "CREATE OR REPLACE FUNCTION",
        "ALTER FUNCTION",
        "REVOKE EXECUTE ON FUNCTION",
    ]


def test_the_same_contents_take_nothing():
    want = contents(
        schemas=[{"name": "pool", "owner": "postgres"}],
        functions=[FUNCTION],
        grants=[{"object": "schema", "name": "pool", "role": "bob", "privileges": ["USAGE"], "state": "present"}],
    )
    current = Contents(
        schemas={"pool": "postgres"},
        functions={"pool.auth(text)": Function("SELECT 1", True, ("search_path=pg_catalog",), "postgres")},
        grants={("schema", "pool"): frozenset({("bob", "USAGE")})},
    )
    assert plan_contents(want, current) == []


def test_a_function_that_lost_its_rights_is_replaced():
    current = Function("SELECT 1", False, (), "postgres")
    plan = plan_contents(contents(functions=[FUNCTION]), Contents(functions={"pool.auth(text)": current}))
    assert len(plan) == 1
    assert "SECURITY DEFINER SET search_path" in plan[0].text


@pytest.mark.parametrize("signature", ["auth(text)", "a.b(text); DROP TABLE x", "a.b('x')", "a.b"])
def test_signatures_are_no_place_for_sql(signature):
    with pytest.raises(PostgresError, match="signature"):
        plan_contents(contents(functions=[{**FUNCTION, "signature": signature}]), Contents())


def grant(**more: object) -> dict:
    return {
        "object": "database",
        "name": "app",
        "role": "bob",
        "privileges": ["CONNECT", "TEMPORARY"],
        "state": "present",
        **more,
    }


def test_only_the_missing_privilege_is_granted():
    assert shown(plan_grant(grant(), frozenset({("bob", "CONNECT")}))) == ['GRANT TEMPORARY ON DATABASE "app" TO "bob"']


def test_only_the_held_privilege_is_revoked():
    want = grant(role="PUBLIC", state="absent")
    plan = plan_grant(want, frozenset({("PUBLIC", "CONNECT")}))
    assert shown(plan) == ['REVOKE CONNECT ON DATABASE "app" FROM PUBLIC']
    assert plan_grant(want, frozenset({("bob", "CONNECT")})) == []


def test_unknown_privileges_are_refused():
    with pytest.raises(PostgresError, match="SUPERUSER"):
        plan_grant(grant(privileges=["SUPERUSER"]), frozenset())


def test_names_are_quoted():
    assert shown(plan_grant(grant(role='b"ob', privileges=["CONNECT"]), frozenset())) == [
        'GRANT CONNECT ON DATABASE "app" TO "b""ob"'
    ]
