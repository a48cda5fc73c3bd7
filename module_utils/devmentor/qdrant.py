"""Qdrant as seen over its REST API: cluster membership, and collections as desired, current, difference.

Facts about 1.16 that this rests on: `/readyz` latches, so the consensus thread's own status is read; `--bootstrap` is
ignored by a peer that has a Raft state of term 1 or more; a peer without one that is started without `--bootstrap`
founds a cluster of its own. Distribution settings of a collection (shards, vectors) cannot be changed later. A change
that a follower forwards to the leader is sent once: one that is lost, as it can be after a peer's restart, is never
committed, and the follower answers 500 when its `timeout` has passed. Asking again is the remedy, and harmless.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection as Several
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Longer than a peer waits for the consensus (10 s where a request cannot say), so that it says what it waits for.
REQUEST_TIMEOUT_S = 15
CONSENSUS_TIMEOUT_S = 5


class QdrantError(Exception):
    """A peer that does not answer or refuses; the message says which, what and the remedy."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer's REST API. `url` is https://host:port; `ca` signs its certificate."""

    url: str
    api_key: str
    ca: str
    timeout_s: float = REQUEST_TIMEOUT_S

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `result` of one request. Raises QdrantError; a 404 raises NotFound, a 5xx raises NotYet."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"api-key": self.api_key, "Content-Type": "application/json"},
        )
        try:
            context = ssl.create_default_context(cafile=self.ca)
            # A proxy in the environment is for the outside, never for a peer.
            handlers = [urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})]
            opener = urllib.request.build_opener(*handlers)
            with opener.open(request, timeout=self.timeout_s) as response:
                return json.load(response)["result"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode(errors="replace")
            kind = NotFound if error.code == 404 else NotYet if error.code >= 500 else QdrantError
            raise kind(f"{self.url}{path} answered {error.code}: {said}") from error
        except (OSError, ValueError, KeyError) as error:
            raise NoAnswer(f"{self.url}{path} does not answer: {error}") from error


class NoAnswer(QdrantError):
    """Nobody answered, or not in Qdrant's language."""


class NotFound(QdrantError):
    """The peer answered, but has no such thing."""


class NotYet(QdrantError):
    """The peer answered that it cannot now: a collection that another peer makes this moment has no replica to read."""


@dataclasses.dataclass(frozen=True)
class RaftState:
    """A peer's own record of its membership. Term 0 is a peer that began to join and never finished."""

    peer_id: int
    term: int

    @property
    def member(self) -> bool:
        return self.term > 0


def read_raft_state(storage: Path) -> RaftState | None:
    """The Raft state on disk, None where there is none. Raises QdrantError for one that cannot be read."""
    path = storage / "raft_state.json"
    try:
        state = json.loads(path.read_text())
        return RaftState(int(state["this_peer_id"]), int(state["state"]["hard_state"]["term"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QdrantError(
            f"{path} cannot be read as a Raft state ({error!r}). This peer's place in the cluster is unknown, so "
            "nothing is started. Remedy: restore it, or remove this host's storage and join it anew as a replaced node."
        ) from error


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What one peer says about its cluster. `peers` maps peer id to URI, `thread` is the consensus thread's status."""

    peer_id: int
    peers: Mapping[str, str]
    thread: str
    leader: int | None
    pending: int


def parse_cluster(result: Mapping[str, Any]) -> Cluster:
    """The result of GET /cluster. Raises QdrantError where the peer is not in distributed mode."""
    if result.get("status") != "enabled":
        raise QdrantError(f"the peer is not in distributed mode (status {result.get('status')!r}).")
    raft = result["raft_info"]
    return Cluster(
        peer_id=result["peer_id"],
        peers={key: value["uri"] for key, value in result["peers"].items()},
        thread=result["consensus_thread_status"]["consensus_thread_status"],
        leader=raft.get("leader"),
        pending=raft.get("pending_operations", 0),
    )


def cluster_problem(cluster: Cluster, least: int, most: int) -> str:
    """Why this peer's view of the cluster is not good yet, empty when it is."""
    if cluster.thread != "working":
        return f"its consensus thread is {cluster.thread!r}"
    if not cluster.leader:
        return "it knows no leader"
    if cluster.pending:
        return f"{cluster.pending} consensus operations are pending"
    if len(cluster.peers) < least:
        return f"it sees {len(cluster.peers)} peers of at least {least}"
    if len(cluster.peers) > most:
        known = ", ".join(f"{key} at {uri}" for key, uri in sorted(cluster.peers.items()))
        return (
            f"it sees {len(cluster.peers)} peers where the inventory has {most}: {known}. Remove the one that is gone"
        )
    return ""


def wait_for_cluster(peer: Peer, least: int, most: int, timeout_s: float) -> Cluster:
    """The cluster, once this peer sees it whole. Raises QdrantError with what was still wrong at the end."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            cluster = parse_cluster(peer.call("GET", "/cluster"))
            problem = cluster_problem(cluster, least, most)
            if not problem:
                return cluster
        except QdrantError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise QdrantError(f"{peer.url} is not a good member of the cluster after {timeout_s:g} s: {problem}.")
        time.sleep(0.3)


@dataclasses.dataclass(frozen=True)
class Collection:
    """A collection as declared. payload_indexes maps a payload field to its schema (a name or Qdrant's own mapping);
    hnsw_payload_m None leaves the graphs of its values as they are."""

    name: str
    size: int
    distance: str
    shard_number: int
    replication_factor: int
    write_consistency_factor: int
    hnsw_m: int
    hnsw_ef_construct: int
    hnsw_payload_m: int | None = None
    on_disk_payload: bool = True
    payload_indexes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The request that makes it."""
        return {
            "vectors": {"size": self.size, "distance": self.distance},
            "shard_number": self.shard_number,
            "replication_factor": self.replication_factor,
            "write_consistency_factor": self.write_consistency_factor,
            "hnsw_config": {
                "m": self.hnsw_m,
                "ef_construct": self.hnsw_ef_construct,
                **({} if self.hnsw_payload_m is None else {"payload_m": self.hnsw_payload_m}),
            },
            "on_disk_payload": self.on_disk_payload,
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """What separates a collection from its declaration.

    create: it is missing. patch: the body of an update, empty where nothing is to change. indexes: payload indexes to
    make. drift: differences that no update can undo, in words. why: every difference that is acted on, in words.
    """

    create: bool = False
    patch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    indexes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drift: tuple[str, ...] = ()
    why: tuple[str, ...] = ()


def _schema_type(schema: Any) -> str:
    return str(schema["type"] if isinstance(schema, Mapping) else schema).lower()


def plan_collection(wanted: Collection, current: Mapping[str, Any] | None) -> Plan:
    """Compare a declaration with the result of GET /collections/NAME (None where it does not exist)."""
    if current is None:
        return Plan(create=True, indexes=dict(wanted.payload_indexes), why=(f"{wanted.name} does not exist",))
    config, params = current["config"], current["config"]["params"]
    vectors, hnsw = params["vectors"], config["hnsw_config"]
    fixed = [
        ("vector size", vectors.get("size"), wanted.size),
        ("distance", vectors.get("distance"), wanted.distance),
        ("shard_number", params.get("shard_number"), wanted.shard_number),
    ]
    drift = [f"{what} is {have}, declared {want}" for what, have, want in fixed if have != want]
    patch: dict[str, dict[str, Any]] = {}
    why = []
    changeable = [
        ("params", "replication_factor", params.get("replication_factor"), wanted.replication_factor),
        ("params", "write_consistency_factor", params.get("write_consistency_factor"), wanted.write_consistency_factor),
        ("params", "on_disk_payload", params.get("on_disk_payload"), wanted.on_disk_payload),
        ("hnsw_config", "m", hnsw.get("m"), wanted.hnsw_m),
        ("hnsw_config", "ef_construct", hnsw.get("ef_construct"), wanted.hnsw_ef_construct),
    ]
    if wanted.hnsw_payload_m is not None:
        changeable.append(("hnsw_config", "payload_m", hnsw.get("payload_m"), wanted.hnsw_payload_m))
    for section, key, have, want in changeable:
        if have != want:
            patch.setdefault(section, {})[key] = want
            why.append(f"{wanted.name}: {key} is {have}, declared {want}")
    indexes = {}
    schema = current.get("payload_schema", {})
    for field, declared in wanted.payload_indexes.items():
        if field not in schema:
            indexes[field] = declared
            why.append(f"{wanted.name}: no payload index on {field}")
        elif schema[field]["data_type"] != _schema_type(declared):
            drift.append(f"payload index {field} is {schema[field]['data_type']}, declared {_schema_type(declared)}")
    return Plan(patch=patch, indexes=indexes, drift=tuple(drift), why=tuple(why))


@dataclasses.dataclass(frozen=True)
class Absence:
    """Hosts that are known not to take part: the ids of their peers, and how many of them are no peers at all."""

    ids: frozenset[str] = frozenset()
    strangers: int = 0


NOBODY = Absence()


def _hostname(uri: str) -> str:
    try:
        return urllib.parse.urlsplit(uri).hostname or ""
    except ValueError:
        return ""


def absence(peers: Mapping[str, str], hosts: Several[str]) -> Absence:
    """What the absent `hosts` (names or addresses as in the peers' URIs) are to the cluster of `peers` (id -> URI).

    A peer whose URI cannot be read is not absent: it has to be well.
    """
    found = {key: _hostname(uri) for key, uri in peers.items()}
    names = {host.lower() for host in hosts}
    ids = frozenset(key for key, name in found.items() if name in names)
    return Absence(ids, len(names - set(found.values())))


@dataclasses.dataclass(frozen=True)
class Replica:
    """One replica of one shard."""

    shard: int
    peer: str
    state: str


def parse_replicas(placement: Mapping[str, Any]) -> list[Replica]:
    """The replicas of GET /collections/NAME/cluster. Raises QdrantError for an answer that cannot be read."""
    try:
        own = [(shard, placement["peer_id"]) for shard in placement["local_shards"]]
        others = [(shard, shard["peer_id"]) for shard in placement["remote_shards"]]
        return [Replica(int(shard["shard_id"]), str(peer), str(shard["state"])) for shard, peer in [*own, *others]]
    except (KeyError, TypeError, ValueError) as error:
        raise QdrantError(f"the placement of the replicas cannot be read ({error!r})") from error


def transfers_of_present(placement: Mapping[str, Any], absent: Absence) -> int:
    """Shard transfers under way in which no absent peer takes part: one of those never ends."""
    moves = placement.get("shard_transfers") or []
    return sum(not {str(move.get("from")), str(move.get("to"))} & absent.ids for move in moves)


def replica_problem(wanted: Collection, placement: Mapping[str, Any], absent: Absence = NOBODY) -> str:
    """Why the replicas of GET /collections/NAME/cluster are not as declared, empty when they are.

    Nothing is asked of the replicas of absent peers, but every shard needs as many active ones as a write does.
    """
    replicas = parse_replicas(placement)
    states = [replica.state for replica in replicas if replica.peer not in absent.ids]
    wrong = sorted({state for state in states if state != "Active"})
    if wrong:
        return f"{sum(state in wrong for state in states)} of {len(states)} replicas are {', '.join(wrong)}"
    if moving := transfers_of_present(placement, absent):
        return f"{moving} shard transfers are under way"
    # An absent host that is no peer any more took its replicas with it.
    expected = wanted.shard_number * max(wanted.replication_factor - absent.strangers, 1)
    if len(replicas) < expected:
        return f"it has {len(replicas)} replicas of {expected}"
    needed = min(wanted.write_consistency_factor, wanted.replication_factor)
    active = collections.Counter(replica.shard for replica in replicas if replica.state == "Active")
    few = [shard for shard in range(wanted.shard_number) if active[shard] < needed]
    return f"shards {', '.join(map(str, few))} have fewer than {needed} active replicas" if few else ""


def apply_plan(peer: Peer, wanted: Collection, plan: Plan, peers: int) -> None:
    """Make what the plan says. Raises QdrantError, with nothing created, where there are fewer peers than replicas."""
    path = f"/collections/{wanted.name}"
    if plan.create:
        if peers < wanted.replication_factor:
            raise QdrantError(
                f"collection {wanted.name} wants {wanted.replication_factor} replicas of each shard and the cluster "
                f"has {peers} peers: each shard would silently have fewer. Remedy: have all peers join first, or lower "
                "replication_factor."
            )
        try:
            peer.call("PUT", f"{path}?timeout={CONSENSUS_TIMEOUT_S}", wanted.body())
        except QdrantError as error:
            if "already exists" not in str(error):  # made by way of another peer in the same moment
                raise
    if plan.patch:
        peer.call("PATCH", f"{path}?timeout={CONSENSUS_TIMEOUT_S}", plan.patch)
    for field, schema in plan.indexes.items():
        peer.call("PUT", f"{path}/index?wait=true", {"field_name": field, "field_schema": schema})


def wait_for_replicas(peer: Peer, wanted: Collection, timeout_s: float, absent: Absence = NOBODY) -> int:
    """Number of active replicas, once this peer sees all those of present peers active.

    Raises QdrantError with what was still wrong.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        placement = peer.call("GET", f"/collections/{wanted.name}/cluster")
        problem = replica_problem(wanted, placement, absent)
        if not problem:
            return sum(replica.state == "Active" for replica in parse_replicas(placement))
        if time.monotonic() > deadline:
            raise QdrantError(
                f"collection {wanted.name} as seen from {peer.url} after {timeout_s:g} s: {problem}. "
                "Remedy: start the peer that is down; a replica that is missing must be made by a shard transfer."
            )
        time.sleep(0.3)
