from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lab import cli, lifecycle
from lab.cgroups import Hierarchies
from lab.errors import HostStateError
from lab.host import Host
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.state import HostRecord, LabRecord, load_record, save_record

QUIET = SimpleNamespace(say=lambda _message: None, step=lambda _what: nullcontext())


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVMENTOR_LAB_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(lifecycle, "find_hierarchies", lambda: Hierarchies(tmp_path, None, {}))
    (tmp_path / "hosts.yml").write_text("all: {hosts: {a: , b: }}\n")
    return Lab(read_inventory(tmp_path), QUIET)


@pytest.mark.parametrize("number", [None, 4])
def test_a_host_that_left_the_inventory_goes_also_when_up_was_killed_before_the_network(lab, number, monkeypatch):
    destroyed = []
    monkeypatch.setattr(Host, "destroy", lambda host: destroyed.append(host.name))
    save_record(lab.layout, LabRecord("/i", number, {"a": HostRecord(0), "old": HostRecord(1)}))
    record = lab._place_hosts()
    assert {name: host.index for name, host in record.hosts.items()} == {"a": 0, "b": 1}
    assert load_record(lab.layout) == record
    assert destroyed == ([] if number is None else ["old"])


def test_a_floor_without_a_running_host_is_an_error_and_not_no_time():
    nobody = SimpleNamespace(hosts=lambda _limit: [SimpleNamespace(powered=False)], progress=QUIET)
    with pytest.raises(HostStateError, match="no host is running"):
        cli._floor(nobody, cli._parser().parse_args(["floor"]))
