"""The vector store: a collection that is whole, peers that agree."""

from __future__ import annotations

from typing import Any

import pytest

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_qdrant import judge_collection, judge_raft


def collection(**changes: Any) -> dict[str, Any]:
    local = [{"shard_id": shard, "state": "Active"} for shard in range(6)]
    remote = [{"shard_id": shard, "state": "Active", "peer_id": peer} for shard in range(6) for peer in (1, 2)]
    return {"shard_count": 6, "local_shards": local, "remote_shards": remote, "shard_transfers": [], **changes}


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
