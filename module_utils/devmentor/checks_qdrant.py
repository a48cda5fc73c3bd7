"""verify's checks of the vector store."""

from __future__ import annotations

import collections.abc as c
from typing import Any

from .checks_base import Failed, Plan, Recorder, poll
from .checks_client import ask


def judge_collection(view: c.Mapping[str, Any], hosts: int) -> str:
    """A collection as one peer sees it: every replica Active, none moving."""
    shards = [(s["shard_id"], s["state"]) for s in view.get("local_shards", [])]
    shards += [(s["shard_id"], s["state"]) for s in view.get("remote_shards", [])]
    if not shards:
        raise Failed("the collection has no shards")
    bad = [f"shard {shard} {state}" for shard, state in shards if state != "Active"]
    if bad:
        raise Failed(", ".join(sorted(bad)))
    if view.get("shard_transfers"):
        raise Failed(f"{len(view['shard_transfers'])} transfers under way")
    per_shard = len(shards) / view["shard_count"]
    if per_shard < min(3, hosts):
        raise Failed(f"{len(shards)} replicas of {view['shard_count']} shards, {min(3, hosts)} of each are needed")
    return f"{view['shard_count']} shards x {per_shard:g} replicas Active, no transfer"


def judge_raft(views: c.Mapping[str, c.Mapping[str, Any]]) -> str:
    """All peers have applied the same log, and each one's consensus works."""
    for name, view in views.items():
        if view.get("status") != "enabled":
            raise Failed(f"{name} is not in cluster mode")
        thread = view["consensus_thread_status"]["consensus_thread_status"]
        if thread != "working":
            raise Failed(f"consensus thread of {name} is {thread}")
        if view["raft_info"]["pending_operations"]:
            raise Failed(f"{name} has {view['raft_info']['pending_operations']} pending operations")
        if len(view["peers"]) != len(views):
            raise Failed(f"{name} knows {len(view['peers'])} peers of {len(views)}")
    commits = {name: view["raft_info"]["commit"] for name, view in views.items()}
    if len(set(commits.values())) > 1:
        raise Failed("commits differ: " + ", ".join(f"{name} {commit}" for name, commit in commits.items()))
    return f"{len(views)} peers, commit {next(iter(commits.values()))}, nothing pending, consensus working"


def check_qdrant(plan: Plan, record: Recorder) -> None:
    key = {"api-key": plan.secrets["qdrant_api_key"]}

    def get(address: str, path: str) -> Any:
        return ask(plan, "GET", f"https://{address}:{plan.ports['qdrant_http']}{path}", headers=key).json()["result"]

    def replicas() -> str:
        view = get(plan.address, f"/collections/{plan.collection}/cluster")
        return judge_collection(view, len(plan.peers["qdrant"]))

    def consensus() -> str:
        return judge_raft({name: get(address, "/cluster") for name, address in plan.peers["qdrant"].items()})

    record.check("replicas", lambda: poll(replicas, 10))
    # Commits move while somebody writes: peers may differ for a moment, not for long.
    record.check("consensus", lambda: poll(consensus, 10))
