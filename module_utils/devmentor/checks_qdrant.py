"""verify's checks of the vector store."""

from __future__ import annotations

import collections
import collections.abc as c
from typing import Any

from .checks_base import Failed, Plan, Recorder, poll
from .checks_client import ask
from .qdrant import NOBODY, Absence, QdrantError, absence, parse_replicas, transfers_of_present

NEAREST = 0.999  # cosine of vectors that count as the same


def judge_collection(
    view: c.Mapping[str, Any], hosts: int, absent: int = 0, lost: Absence = NOBODY, factor: int = 3
) -> str:
    """A collection as one peer sees it: every replica on present peers Active, none moving, and enough of each shard.

    hosts: those that are there; absent: those in `offline`, whose peers are `lost`. A shard may lack one replica for
    each absent host, and needs one that is Active in any case. factor: replicas of a shard with enough hosts.
    """
    try:
        replicas = [replica for replica in parse_replicas(view) if replica.peer not in lost.ids]
    except QdrantError as error:
        raise Failed(str(error)) from error
    if not replicas:
        raise Failed("the collection has no shards")
    bad = [f"shard {replica.shard} {replica.state}" for replica in replicas if replica.state != "Active"]
    if bad:
        raise Failed(", ".join(sorted(bad)))
    if moving := transfers_of_present(view, lost):
        raise Failed(f"{moving} transfers under way")
    needed = max(min(factor, hosts + absent) - absent, 1)
    count = collections.Counter(replica.shard for replica in replicas)
    few = [shard for shard in range(view["shard_count"]) if count[shard] < needed]
    if few:
        raise Failed(
            f"{len(replicas)} replicas of {view['shard_count']} shards, {needed} of each are needed; too few of "
            + ", ".join(str(shard) for shard in few)
        )
    without = f" without {absent} offline" if absent else ""
    per_shard = len(replicas) / view["shard_count"]
    return f"{view['shard_count']} shards x {per_shard:g} replicas Active{without}, no transfer"


def known_peers(view: c.Mapping[str, Any]) -> dict[str, str]:
    """Peer id -> URI of GET /cluster."""
    return {str(key): str(peer.get("uri", "")) for key, peer in view["peers"].items()}


def judge_raft(views: c.Mapping[str, c.Mapping[str, Any]], absent: c.Collection[str] = ()) -> str:
    """All peers have applied the same log, and each one's consensus works. absent: addresses of hosts in `offline`."""
    for name, view in views.items():
        if view.get("status") != "enabled":
            raise Failed(f"{name} is not in cluster mode")
        thread = view["consensus_thread_status"]["consensus_thread_status"]
        if thread != "working":
            raise Failed(f"consensus thread of {name} is {thread}")
        if view["raft_info"]["pending_operations"]:
            raise Failed(f"{name} has {view['raft_info']['pending_operations']} pending operations")
        known = known_peers(view)
        present = len(known) - len(absence(known, absent).ids)
        if present != len(views):
            raise Failed(f"{name} knows {present} peers of {len(views)}")
    commits = {name: view["raft_info"]["commit"] for name, view in views.items()}
    if len(set(commits.values())) > 1:
        raise Failed("commits differ: " + ", ".join(f"{name} {commit}" for name, commit in commits.items()))
    return f"{len(views)} peers, commit {next(iter(commits.values()))}, nothing pending, consensus working"


def judge_found(wanted: c.Mapping[str, Any], found: list[c.Mapping[str, Any]]) -> str:
    """A search by a stored point's own vector finds it: itself, or another whose vector is as near."""
    if not found:
        raise Failed("a search by a stored vector finds nothing")
    scores = {str(point["id"]): float(point["score"]) for point in found}
    best = max(scores.values())
    if str(wanted["id"]) not in scores and best < NEAREST:
        raise Failed(f"a search by the vector of {wanted['id']} finds others, the nearest at {best:.4f}")
    return f"the vector of {wanted['id']} found at {scores.get(str(wanted['id']), best):.4f}"


def check_vector(plan: Plan, record: Recorder) -> None:
    """A vector that is stored is found through this peer. A collection without points must say so to a search too."""
    url = f"https://{plan.address}:{plan.ports['qdrant_http']}/collections/{plan.collection}"
    key = {"api-key": plan.secrets["qdrant_api_key"]}

    def post(path: str, body: c.Mapping[str, Any]) -> Any:
        return ask(plan, "POST", f"{url}/points/{path}", body, key).json()["result"]

    def found() -> str:
        [*points] = post("scroll", {"limit": 1, "with_vector": True, "with_payload": False})["points"]
        if points:
            search = {"query": points[0]["vector"], "limit": 10, "params": {"exact": True}, "with_payload": False}
            return judge_found(points[0], post("query", search)["points"])
        size = ask(plan, "GET", url, headers=key).json()["result"]["config"]["params"]["vectors"]["size"]
        if post("query", {"query": [1.0] * size, "limit": 1})["points"]:
            raise Failed("a search finds points where a scroll has none")
        return "the collection has no points, and a search says so"

    # Points may be deleted between the two questions.
    record.check("vector found", lambda: poll(found, min(plan.patience, 10)))


def check_qdrant(plan: Plan, record: Recorder) -> None:
    key = {"api-key": plan.secrets["qdrant_api_key"]}

    def get(address: str, path: str) -> Any:
        return ask(plan, "GET", f"https://{address}:{plan.ports['qdrant_http']}{path}", headers=key).json()["result"]

    absent = plan.absent.get("qdrant", {}).values()

    def replicas() -> str:
        lost = absence(known_peers(get(plan.address, "/cluster")), absent) if absent else NOBODY
        view = get(plan.address, f"/collections/{plan.collection}/cluster")
        return judge_collection(view, len(plan.peers["qdrant"]), len(absent), lost)

    def consensus() -> str:
        return judge_raft({name: get(address, "/cluster") for name, address in plan.peers["qdrant"].items()}, absent)

    record.check("replicas", lambda: poll(replicas, 10))
    # Commits move while somebody writes: peers may differ for a moment, not for long.
    record.check("consensus", lambda: poll(consensus, 10))
