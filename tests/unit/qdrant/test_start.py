"""Who founds a cluster, who joins one, and what the launcher lets start."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from filter_plugins.qdrant import qdrant_start
from module_utils.devmentor.qdrant import QdrantError, read_raft_state

ROLE = Path(__file__).parents[3] / "roles" / "qdrant"
URIS = {name: f"https://10.0.0.{index}:6335" for index, name in enumerate("abc", 1)}


def fact(member=False, running=False, working=()):
    return {"member": member, "running": running, "working": [f"https://10.0.0.{i}:6333" for i in working]}


def start(facts, **options):
    """The decision of every host that is in the play."""
    return {host: qdrant_start(facts, host, URIS, **options) for host in facts if facts[host] is not None}


def test_on_bare_hosts_the_first_founds_and_the_others_join_it():
    assert start({"a": fact(), "b": fact(), "c": fact()}) == {"a": "found", "b": URIS["a"], "c": URIS["a"]}


def test_members_start_as_they_are():
    assert start({name: fact(member=True) for name in "abc"}) == {"a": "", "b": "", "c": ""}


def test_a_first_host_that_lost_its_disk_joins_the_others():
    facts = {"a": fact(), "b": fact(member=True, running=True), "c": fact(member=True, running=True)}
    assert start(facts) == {"a": URIS["b"], "b": "", "c": ""}


def test_a_running_member_is_preferred():
    facts = {"a": fact(), "b": fact(member=True), "c": fact(member=True, running=True)}
    assert start(facts)["a"] == URIS["c"]


def test_while_all_members_are_down_nobody_founds():
    facts = {"a": fact(), "b": fact(member=True), "c": fact(member=True)}
    assert "found" not in start(facts).values()


def test_a_limited_run_joins_what_it_sees_at_work():
    assert start({"a": fact(working=[3]), "b": None, "c": None}) == {"a": URIS["c"]}


def test_a_limited_run_that_sees_nobody_is_refused():
    with pytest.raises(AnsibleFilterError, match="b, c"):
        start({"a": fact(), "b": None, "c": None})


def test_the_refusal_can_be_overruled_by_name():
    assert start({"a": None, "b": fact(), "c": fact()}, found_without=True) == {"b": "found", "c": URIS["b"]}


def test_at_most_one_founder_and_none_beside_a_member():
    known = [None, fact(), fact(member=True), fact(member=True, running=True)]
    for a, b, c in itertools.product(known, repeat=3):
        facts = {"a": a, "b": b, "c": c}
        founders = list(start(facts, found_without=True).values()).count("found")
        anyone = any(fact is not None for fact in facts.values())
        members = any(fact and fact["member"] for fact in facts.values())
        assert founders == (1 if anyone and not members else 0)


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("qdrant_start_script", ROLE / "files" / "qdrant-start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_launcher_never_founds_by_itself(launcher, tmp_path):
    with pytest.raises(ValueError, match="no Raft state"):
        launcher.arguments(launcher.member(tmp_path), "")
    assert launcher.arguments(False, "found") == []
    assert launcher.arguments(False, URIS["a"]) == ["--bootstrap", URIS["a"]]
    assert launcher.arguments(True, "") == []


@pytest.mark.parametrize(("term", "is_member"), [(0, False), (1, True), (7, True)])
def test_a_join_that_never_finished_is_no_membership(launcher, tmp_path, term, is_member):
    state = {"this_peer_id": 5, "state": {"hard_state": {"term": term, "vote": 0, "commit": 0}}}
    (tmp_path / "raft_state.json").write_text(json.dumps(state))
    assert launcher.member(tmp_path) is is_member
    assert read_raft_state(tmp_path).member is is_member


def test_an_unreadable_raft_state_is_unknown_not_absent(tmp_path):
    assert read_raft_state(tmp_path) is None
    (tmp_path / "raft_state.json").write_text("{")
    with pytest.raises(QdrantError, match="unknown"):
        read_raft_state(tmp_path)
