"""A new data directory is there whole or not at all."""

import getpass
import subprocess
from pathlib import Path

import pytest

from module_utils.devmentor import postgres_datadir
from module_utils.devmentor.postgres import PostgresError
from module_utils.devmentor.postgres_datadir import NewData
from module_utils.devmentor.postgres_server import Server


class Host(Server):
    """A server below a temporary folder, whose programs are played here."""

    fails = False

    def __init__(self, base):
        super().__init__(17, "main", 5432, 1)
        self.base, self.data = str(base), f"{base}/main"
        self.inherited = []

    def as_user(self, command, check=False, stderr=subprocess.PIPE):
        self.inherited.append(self.lock)
        staging = Path(command[2])
        staging.mkdir()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "PG_VERSION"):
            (staging / name).write_text("17\n")
        if self.fails:
            raise PostgresError("initdb failed with 1: no space left")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres_datadir, "SYSTEM_USER", getpass.getuser())
    return Host(tmp_path)


def make(host):
    actions = []
    NewData(host, {"initdb_options": [], "seed": {"wal_level": "logical"}}, actions).create("initdb")
    return actions


def test_data_is_renamed_into_its_place_with_the_seed_and_without_its_own_configuration(host):
    actions = make(host)
    assert actions == [f"initdb {host.data}: no host has data"]
    assert sorted(path.name for path in Path(host.data).iterdir()) == ["PG_VERSION", "postgresql.auto.conf"]
    assert "wal_level = 'logical'" in Path(host.data, "postgresql.auto.conf").read_text()
    assert not Path(host.data + ".incoming").exists()


def test_programs_inherit_the_lock_and_it_is_free_afterwards(host):
    make(host)
    assert host.inherited[0] is not None
    assert host.lock is None


def test_an_interrupted_run_leaves_no_data_and_the_next_one_begins_again(host):
    host.fails = True
    with pytest.raises(PostgresError, match="no space left"):
        make(host)
    assert not Path(host.data).exists()
    host.fails = False
    assert make(host)[0] == f"removed {host.data}.incoming: left by an interrupted run"
    assert Path(host.data, "PG_VERSION").exists()
