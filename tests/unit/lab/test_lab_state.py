import multiprocessing
import os
import time

import pytest

from lab.names import Names
from lab.state import HostRecord, LabRecord, Layout, load_record, locked, other_networks, save_record, write_atomically


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVMENTOR_LAB_STATE", str(tmp_path))
    return Layout(Names("0123abcd"))


def test_a_record_survives_the_way_to_disk_and_back(layout):
    assert load_record(layout) is None
    record = LabRecord("/i/hosts.yml", 4, {"a": HostRecord(0, "trixie", "bare", ["/r"]), "b": HostRecord(1)})
    save_record(layout, record)
    assert load_record(layout) == record


def test_networks_of_other_labs_are_reserved_and_ones_own_is_not(layout):
    save_record(layout, LabRecord("/i", 4))
    save_record(Layout(Names("ffffffff")), LabRecord("/j", 9))
    save_record(Layout(Names("eeeeeeee")), LabRecord("/k"))
    assert other_networks(layout) == {9}


def test_an_atomic_write_sets_the_mode_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "d/key", "secret", 0o600)
    assert (tmp_path / "d/key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "d") == ["key"]


def _hold(path, seconds, taken):
    with locked(path):
        taken.set()
        time.sleep(seconds)


def test_a_lock_excludes_and_ends_with_its_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", 60, taken))
    holder.start()
    assert taken.wait(10)
    waiter_got_it = context.Event()
    waiter = context.Process(target=_hold, args=(tmp_path / "lock", 0, waiter_got_it))
    waiter.start()
    assert not waiter_got_it.wait(0.3)
    holder.kill()
    assert waiter_got_it.wait(10)
    waiter.join()
    holder.join()
