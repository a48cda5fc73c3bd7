"""Indexes that are built beside the traffic: missing, left invalid by a broken-off build, no longer used."""

from contextlib import contextmanager

import psycopg
import pytest

from devmentor.pbml import indexes
from devmentor.pbml.schema import MigrationFailed


class Catalog:
    """PostgreSQL's answers about indexes: name to whether it is valid."""

    def __init__(self, **valid: bool) -> None:
        self.valid = valid
        self.executed: list[str] = []
        self.locked_out = 2

    def execute(self, statement, values=()):
        text = statement if isinstance(statement, str) else statement.as_string(None)
        answer = {"value": None}
        if "pg_try_advisory_lock" in text:
            self.locked_out -= 1
            answer["value"] = self.locked_out < 0
        elif "indisvalid" in text:
            answer["value"] = self.valid.get(values[0])
        elif "to_regclass" in text:
            answer["value"] = values[0] in self.valid
        else:
            self.executed.append(" ".join(text.split()[:4]))
        self.fetchone = lambda: answer
        return self


@pytest.fixture
def connect(monkeypatch):
    def to(catalog):
        @contextmanager
        def connection(_conninfo, autocommit, row_factory):
            assert autocommit, "CREATE INDEX CONCURRENTLY can not run in a transaction"
            yield catalog

        monkeypatch.setattr(psycopg, "connect", connection)
        return indexes.ensure("")

    return to


def test_what_is_there_is_left_alone(connect):
    catalog = Catalog(chunks_lexemes=True, versions_said=True, versions_aged=True)
    assert connect(catalog) == []
    assert catalog.executed == ["SELECT pg_sleep(0.5)", "SELECT pg_sleep(0.5)", "SET lock_timeout = '30s'"]


def test_what_is_missing_is_built_and_what_is_retired_goes(connect):
    catalog = Catalog(chunks_body=True)
    assert connect(catalog) == [
        "built chunks_lexemes",
        "built versions_said",
        "built versions_aged",
        "dropped chunks_body",
    ]
    assert catalog.executed[3:] == [
        "CREATE INDEX CONCURRENTLY chunks_lexemes",
        "ANALYZE chunks",
        "CREATE INDEX CONCURRENTLY versions_said",
        "CREATE INDEX CONCURRENTLY versions_aged",
        "DROP INDEX CONCURRENTLY chunks_body",
    ]


def test_a_build_that_was_broken_off_is_done_again(connect):
    catalog = Catalog(chunks_lexemes=True, versions_said=False, versions_aged=True)
    assert connect(catalog) == ["built versions_said again: a build was broken off"]
    assert catalog.executed[3:] == [
        "DROP INDEX CONCURRENTLY versions_said",
        "CREATE INDEX CONCURRENTLY versions_said",
    ]


def test_an_error_says_that_it_may_be_run_again(connect):
    class Refusing(Catalog):
        def execute(self, statement, values=()):
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")

    with pytest.raises(MigrationFailed, match=r"indexes: canceling .*; run it again"):
        connect(Refusing())
