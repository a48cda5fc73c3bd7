"""What a repository still needs, and where PgBouncer's entries lead to."""

import subprocess
from types import SimpleNamespace

import pytest

from module_utils.devmentor.postgres import PostgresError
from module_utils.devmentor.postgres_backup import plan_stanza
from module_utils.devmentor.postgres_targets import choose
from module_utils.devmentor_ha.textfiles import targets
from tests.unit.conftest import load_module

DATABASE = {"id": 1, "repo-key": 1, "system-id": 77, "version": "17"}
BACKUP = {"database": {"id": 1, "repo-key": 1}, "error": False, "type": "full"}


def info(**more: object) -> list[dict]:
    return [{"name": "main", "db": [DATABASE], "backup": [BACKUP], **more}]


def verbs(entries: list[dict], identifier: str = "77") -> list[str]:
    return [verb for verb, _ in plan_stanza(entries, "main", identifier)]


EMPTY = [[], [{"name": "other", "db": [DATABASE]}], [{"name": "main", "db": [], "backup": []}]]


@pytest.mark.parametrize("entries", EMPTY)
def test_an_empty_repository_gets_all(entries):
    assert verbs(entries) == ["stanza-create", "check", "backup"]


@pytest.fixture
def checked(monkeypatch):
    """A check run of the module, of what server and store answer (an exception: raised)."""
    stanza = load_module("pgbackrest_stanza")

    def run(server, store):
        def answer(value):
            def function(self):
                if isinstance(value, Exception):
                    raise value
                return value

            return function

        monkeypatch.setattr(stanza.Repository, "server", answer(server))
        monkeypatch.setattr(stanza.Repository, "info", answer(store))
        return stanza.run(SimpleNamespace(params={"stanza": "main"}, check_mode=True))

    run.module = stanza
    return run


def test_a_lock_that_an_archive_push_has_is_asked_for_again(checked, monkeypatch):
    module, tries = checked.module, []
    monkeypatch.setattr(module, "LOCK_PAUSE_SECONDS", 0)

    def run(self, command, timeout=None):
        tries.append(command[-1])
        if len(tries) < 3:
            raise module.Busy("failed with 50")
        return "done"

    monkeypatch.setattr(module.Repository, "run", run)
    repository = module.Repository({"stanza": "main"})
    assert repository.pgbackrest("stanza-create") == "done"
    assert tries == ["stanza-create"] * 3
    monkeypatch.setattr(module, "LOCK_SECONDS", -1)
    tries.clear()
    with pytest.raises(module.PostgresError, match="50"):
        repository.pgbackrest("stanza-create")


def test_a_check_run_says_what_a_run_would_refuse(checked):
    with pytest.raises(checked.module.PostgresError, match="another database"):
        checked((True, "88"), info())
    assert checked((True, "77"), info(backup=[]))["changed"]
    assert checked((False, "77"), OSError("is not asked")) == {"changed": False, "primary": False, "actions": []}


@pytest.mark.parametrize(
    "error", [OSError("no psql"), KeyError("postgres"), subprocess.TimeoutExpired("pgbackrest", 60)]
)
def test_a_check_run_before_the_first_run_is_no_failure(checked, error):
    for server, store in [(error, []), ((True, "77"), error)]:
        assert checked(server, store)["primary"] is None


def test_an_interrupted_first_run_is_finished():
    assert verbs(info(backup=[])) == ["check", "backup"]


def test_a_backup_with_an_error_or_of_an_older_database_is_none():
    assert verbs(info(backup=[{**BACKUP, "error": True}])) == ["check", "backup"]
    old = {"id": 1, "system-id": 66}
    assert verbs(info(db=[old, {"id": 2, "system-id": 77}])) == ["check", "backup"]


def test_a_complete_repository_gets_nothing():
    assert verbs(info()) == []


def test_another_databases_backups_are_not_taken_over():
    with pytest.raises(PostgresError, match=r"another database.*77.*88"):
        plan_stanza(info(), "main", "88")


def test_the_one_primary_is_chosen():
    assert choose({"a": True, "b": False, "c": "timeout"}) == ("b", ["a", "c"])


@pytest.mark.parametrize("answers", [{"a": True, "b": "timeout"}, {"a": False, "b": False}, {}])
def test_no_primary_or_two_are_refused(answers):
    with pytest.raises(PostgresError, match="primary"):
        choose(answers)


def test_entries():
    lines = targets("app", 5432, "10.0.0.1", ["10.0.0.2", "10.0.0.3"]).splitlines()
    assert lines[1:] == [
        "[databases]",
        "app = host=10.0.0.1 port=5432 dbname=app",
        "app_ro = host=10.0.0.2,10.0.0.3 port=5432 dbname=app load_balance_hosts=round-robin",
        "app_session = host=10.0.0.1 port=5432 dbname=app pool_mode=session",
    ]
    assert "app_ro = host=10.0.0.1 " in targets("app", 5432, "10.0.0.1", [])
