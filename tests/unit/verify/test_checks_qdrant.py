"""The vector store: a collection that is whole, peers that agree."""

from __future__ import annotations

from typing import Any

import pytest

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_qdrant import judge_collection, judge_raft
from module_utils.devmentor.qdrant import Absence


def collection(**changes: Any) -> dict[str, Any]:
    local = [{"shard_id": shard, "state": "Active"} for shard in range(6)]
    remote = [{"shard_id": shard, "state": "Active", "peer_id": peer} for shard in range(6) for peer in (1, 2)]
    shards = {"shard_count": 6, "local_shards": local, "remote_shards": remote}
    return {"peer_id": 0, **shards, "shard_transfers": [], **changes}


def test_a_collection_is_whole_only_with_every_replica_active_and_none_moving() -> None:
    assert judge_collection(collection(), 3) == "6 shards x 3 replicas Active, no transfer"
    dead = [{"shard_id": 4, "state": "Dead", "peer_id": 1}]
    with pytest.raises(Failed, match="shard 4 Dead"):
        judge_collection(collection(remote_shards=[*collection()["remote_shards"], *dead]), 3)
    with pytest.raises(Failed, match="transfers"):
        judge_collection(collection(shard_transfers=[{}]), 3)
    with pytest.raises(Failed, match="3 of each"):
        judge_collection(collection(remote_shards=[]), 3)
    with pytest.raises(Failed, match="no shards"):
        judge_collection(collection(local_shards=[], remote_shards=[]), 3)
    with pytest.raises(Failed, match="cannot be read"):
        judge_collection(collection(remote_shards=[{"shard_id": 4}]), 3)


def test_the_replicas_of_an_offline_host_may_be_dead_and_no_others() -> None:
    def placed(*states: tuple[int, str]) -> dict[str, Any]:
        remote = [{"shard_id": shard, "state": state, "peer_id": peer} for shard in range(6) for peer, state in states]
        return collection(remote_shards=remote)

    lost = Absence(frozenset({"2"}))
    evidence = judge_collection(placed((1, "Active"), (2, "Dead")), 2, 1, lost)
    assert evidence == "6 shards x 2 replicas Active without 1 offline, no transfer"
    with pytest.raises(Failed, match="shard 0 Dead"):
        judge_collection(placed((1, "Dead"), (2, "Dead")), 2, 1, lost)
    with pytest.raises(Failed, match="2 of each"):
        judge_collection(placed((2, "Dead")), 2, 1, lost)


def test_raft_knows_an_offline_host_or_not_but_nobody_else() -> None:
    def view(*hosts: str) -> dict[str, Any]:
        return {**peer(), "peers": {str(n): {"uri": f"https://{host}:6335/"} for n, host in enumerate(hosts)}}

    assert "2 peers" in judge_raft({"a": view("h1", "h2", "h3"), "b": view("h1", "h2", "h3")}, ["h3"])
    assert "2 peers" in judge_raft({"a": view("h1", "h2"), "b": view("h1", "h2")}, ["h3"])
    with pytest.raises(Failed, match="a knows 3 peers of 2"):
        judge_raft({"a": view("h1", "h2", "h4"), "b": view("h1", "h2")}, ["h3"])
    with pytest.raises(Failed, match="a knows 1 peers of 2"):
        judge_raft({"a": view("h1", "h3"), "b": view("h1", "h2")}, ["h3"])


def peer(commit: int = 40, pending: int = 0, thread: str = "working", peers: int = 2) -> dict[str, Any]:
    return {
        "status": "enabled",
        "peers": {str(number): {} for number in range(peers)},
        "raft_info": {"commit": commit, "pending_operations": pending},
        "consensus_thread_status": {"consensus_thread_status": thread},
    }


@pytest.mark.parametrize(
    ("view", "complaint"),
    [
        (peer(commit=39), "commits differ: a 40, b 39"),
        (peer(pending=2), "b has 2 pending"),
        (peer(thread="stopped_with_err"), "thread of b is stopped"),
        (peer(peers=1), "b knows 1 peers of 2"),
        ({"status": "disabled"}, "b is not in cluster mode"),
    ],
)
def test_consensus(view: dict[str, Any], complaint: str) -> None:
    assert "commit 40" in judge_raft({"a": peer(), "b": peer()})
    with pytest.raises(Failed, match=complaint):
        judge_raft({"a": peer(), "b": view})
