"""The checks of a health gate that look at a whole cluster, qdrant and postgres; made as those of gate_checks."""

from __future__ import annotations

import collections
import collections.abc as c
import json
import urllib.parse
from typing import Any

from .checks_base import Failed, Plan, Unanswered
from .checks_client import fetch
from .checks_postgres import judge_replica, psql, read_replicas
from .checks_qdrant import judge_collection, judge_raft, known_peers
from .gate_checks import Memory, Options
from .qdrant import absence

Views = dict[str, Any]  # peer's URL -> what it says

SILENCE_SECONDS = 60
"""A replica that has heard nothing from its primary for longer does not know its lag."""

_REPLICA_SQL = """
select json_build_object('in_recovery', pg_is_in_recovery()) where not pg_is_in_recovery()
union all
select json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'receiver', (select status from pg_stat_wal_receiver),
  'silence', (select extract(epoch from now() - last_msg_receipt_time)::float from pg_stat_wal_receiver),
  'lag_bytes', (select pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn())::bigint from pg_stat_wal_receiver))
where pg_is_in_recovery()
"""


def check_qdrant_cluster(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    """Every replica of every collection as every peer sees it, and the consensus of all peers."""
    key = plan.secrets.get(options["api_key_from"], "")

    def get(base: str, path: str) -> Any:
        try:
            answer = fetch(plan.tls, "GET", base + path, headers={"api-key": key} if key else {}, timeout=limit)
        except ConnectionRefusedError as error:
            raise Failed(f"{base} refuses connections: nothing listens") from error
        except OSError as error:
            raise Unanswered(f"{base}{path} does not answer: {error}") from error
        if answer.status != 200:
            raise Unanswered(f"{base}{path} answered HTTP {answer.status}: {answer.excerpt()}")
        return answer.json()["result"]

    first, wanted, absent = options["url"].rstrip("/"), options["expected_peers"], options["absent"]
    cluster = get(first, "/cluster")
    if cluster.get("status") != "enabled":
        raise Failed(f"{first} is not in cluster mode")
    bases = peer_urls(first, str(cluster["peer_id"]), known_peers(cluster), absent)
    if len(bases) != wanted:
        raise Failed(f"{first} knows {len(bases)} peers of {wanted}: {', '.join(bases)}")
    views = {base: cluster if base == first else get(base, "/cluster") for base in bases}
    evidence = judge_raft(views, absent)
    names = {base: sorted(one["name"] for one in get(base, "/collections")["collections"]) for base in bases}
    if len({tuple(found) for found in names.values()}) > 1:
        raise Failed("the peers list other collections: " + "; ".join(f"{b} {', '.join(n)}" for b, n in names.items()))
    lost = absence(known_peers(cluster), absent)
    for name in names[first]:
        quoted = urllib.parse.quote(name, safe="")
        factor = get(first, f"/collections/{quoted}")["config"]["params"]["replication_factor"]
        placed = {base: get(base, f"/collections/{quoted}/cluster") for base in bases}
        for base, view in placed.items():
            try:
                judge_collection(view, wanted, len(absent), lost, factor)
            except Failed as error:
                raise Failed(f"{name} as seen from {base}: {error}") from error
        if options["points_equal"]:
            judge_points(name, placed)
    equal = ", points equal" if options["points_equal"] else ""
    return f"{evidence}; {len(names[first])} collections Active as seen from every peer, no transfer{equal}"


def peer_urls(first: str, own: str, known: c.Mapping[str, str], absent: c.Collection[str]) -> list[str]:
    """REST URLs of all present peers: the host of each one's own URI, scheme and port of `first`, the peer `own`'s."""
    given = urllib.parse.urlsplit(first)
    gone = absence(known, absent).ids
    bases = []
    for peer, uri in sorted(known.items()):
        host = urllib.parse.urlsplit(uri).hostname
        if peer in gone:
            continue
        if peer != own and not host:
            raise Unanswered(f"{first} names no address of peer {peer}")
        shown = f"[{host}]" if host and ":" in host else host
        netloc = shown if given.port is None else f"{shown}:{given.port}"
        bases.append(first if peer == own else f"{given.scheme}://{netloc}")
    return bases


def judge_points(name: str, placed: Views) -> None:
    """Each shard has as many points on every peer that holds it."""
    counts: dict[int, dict[str, int]] = collections.defaultdict(dict)
    for base, view in placed.items():
        for shard in view["local_shards"]:
            counts[shard["shard_id"]][base] = shard["points_count"]
    for shard_id, found in sorted(counts.items()):
        if len(set(found.values())) > 1:
            shown = ", ".join(f"{base} {count}" for base, count in found.items())
            raise Failed(f"{name} shard {shard_id} has unequal points: {shown}")


def check_postgres_node(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    """This node in the role that it should have, and replication as that role sees it."""
    port = options["port"] or plan.ports.get("postgres") or 5432
    answer = psql(plan, _REPLICA_SQL, port=port, timeout=limit)
    state = json.loads(answer)
    role = "replica" if state["in_recovery"] else "primary"
    if role != options["role"]:
        raise Failed(f"is {role}, wanted {options['role']}")
    if not options["streaming"]:
        return role
    if role == "replica":
        return judge_receiver(state, options["max_lag_bytes"])
    peers = options["replicas"]
    if peers is None:
        peers = [address for host, address in plan.peers.get("postgres", {}).items() if host != plan.host]
    return judge_streams(read_replicas(plan, port, limit), peers, options["max_lag_bytes"])


def judge_receiver(state: c.Mapping[str, Any], max_lag_bytes: int) -> str:
    """A replica by its own WAL receiver: lag is behind what the primary last said that it had."""
    if state["receiver"] != "streaming":
        raise Failed(f"replica whose WAL receiver is {state['receiver'] or 'not running'}")
    if state["silence"] is None or state["lag_bytes"] is None or state["silence"] > SILENCE_SECONDS:
        raise Unanswered(f"replica that has not heard from its primary for {state['silence']} s: its lag is not known")
    evidence = f"replica, streaming, lag {state['lag_bytes']} B"
    if state["lag_bytes"] > max_lag_bytes:
        raise Failed(f"{evidence}, {max_lag_bytes} are the limit")
    return evidence


def judge_streams(replicas: list[dict[str, Any]], peers: c.Sequence[str], max_lag_bytes: int) -> str:
    """A primary by its senders: every expected replica (addresses) streams with little lag."""
    seen = {replica["address"]: replica for replica in replicas}
    for peer in peers:
        try:
            judge_replica(seen.get(peer), max_lag_bytes)
        except Failed as error:
            raise Failed(f"primary, replica {peer}: {error}") from error
    return f"primary, {len(peers)} replicas streaming" if peers else "primary, no replica is expected"
