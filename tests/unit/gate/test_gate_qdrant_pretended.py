"""qdrant: what only a broken cluster shows. Both peers are pretended, over real HTTP; the second one sees the fault."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from gate_doubles import free_port, serving, told

Peer = dict[str, Any]  # path -> result


def peer(own: int) -> Peer:
    shards = [{"shard_id": 0, "state": "Active", "points_count": 5}]
    other = [{"shard_id": 0, "state": "Active", "peer_id": 3 - own}]
    return {
        "/cluster": {
            "status": "enabled",
            "peer_id": own,
            "peers": {"1": {"uri": "http://127.0.0.1:6335/"}, "2": {"uri": "http://127.0.0.2:6335/"}},
            "raft_info": {"commit": 40, "pending_operations": 0},
            "consensus_thread_status": {"consensus_thread_status": "working"},
        },
        "/collections": {"collections": [{"name": "c"}]},
        "/collections/c": {"config": {"params": {"replication_factor": 2}}},
        "/collections/c/cluster": {
            "peer_id": own,
            "shard_count": 1,
            "local_shards": shards,
            "remote_shards": other,
            "shard_transfers": [],
        },
    }


@contextlib.contextmanager
def peers(first: Peer, second: Peer) -> Iterator[str]:
    """Two servers of one port; the URL of the first."""

    def respond(view: Peer) -> Callable[[BaseHTTPRequestHandler, bytes], tuple[int, bytes]]:
        def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if request.headers["api-key"] != "read-key" or request.path not in view:
                return 403, b"no"
            return 200, json.dumps({"result": view[request.path]}).encode()

        return answer

    port = free_port()
    with serving(respond(first), "127.0.0.1", port) as url, serving(respond(second), "127.0.0.2", port):
        yield url


def judged(second: Peer, first: Peer | None = None, **more: Any) -> tuple[str, str]:
    with peers(first or peer(1), second) as url:
        check = {"type": "qdrant", "url": url, "expected_peers": 2, "points_equal": True, **more}
        return told(check, secrets={"qdrant_api_key": "read-key"})


def test_two_pretended_peers_that_agree_pass() -> None:
    result, evidence = judged(peer(2))
    assert result == "pass", evidence
    assert "2 peers, commit 40" in evidence


def commit(view: Peer) -> None:
    view["/cluster"]["raft_info"]["commit"] = 39


def pending(view: Peer) -> None:
    view["/cluster"]["raft_info"]["pending_operations"] = 2


def thread(view: Peer) -> None:
    view["/cluster"]["consensus_thread_status"]["consensus_thread_status"] = "stopped_with_err"


def lonely(view: Peer) -> None:
    del view["/cluster"]["peers"]["1"]


def collections(view: Peer) -> None:
    view["/collections"]["collections"] = []


def dead(view: Peer) -> None:
    view["/collections/c/cluster"]["remote_shards"][0]["state"] = "Dead"


def partial(view: Peer) -> None:
    view["/collections/c/cluster"]["local_shards"][0]["state"] = "Partial"


def moving(view: Peer) -> None:
    view["/collections/c/cluster"]["shard_transfers"] = [{"from": 1, "to": 2}]


def single(view: Peer) -> None:
    view["/collections/c/cluster"]["remote_shards"] = []


def points(view: Peer) -> None:
    view["/collections/c/cluster"]["local_shards"][0]["points_count"] = 4


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (commit, "commits differ"),
        (pending, "2 pending operations"),
        (thread, "is stopped_with_err"),
        (lonely, "knows 1 peers of 2"),
        (collections, "list other collections"),
        (dead, "shard 0 Dead"),
        (partial, "shard 0 Partial"),
        (moving, "1 transfers under way"),
        (single, "2 of each are needed"),
        (points, "unequal points"),
    ],
)
def test_a_fault_that_one_pretended_peer_sees_fails(fault: Callable[[Peer], None], complaint: str) -> None:
    view = copy.deepcopy(peer(2))
    fault(view)
    result, evidence = judged(view)
    assert result == "fail"
    assert complaint in evidence
    assert "127.0.0.2" in evidence or fault in (collections,)


def test_unequal_points_pass_where_nobody_asked() -> None:
    view = peer(2)
    points(view)
    assert judged(view, points_equal=False)[0] == "pass"


def test_a_pretended_peer_that_cannot_be_read_is_unknown() -> None:
    for path in peer(2):
        view = peer(2)
        del view[path]
        first = peer(1)
        if path == "/collections/c":
            del first[path]
        assert judged(view, first)[0] == "unknown", path
    view = peer(2)
    view["/collections/c/cluster"] = {"nonsense": True}
    assert judged(view)[0] != "pass"
    view = peer(2)
    view["/cluster"] = {"status": "enabled"}
    assert judged(view)[0] == "unknown"


def test_an_absent_pretended_peer_is_not_asked() -> None:
    first = peer(1)
    first["/collections/c/cluster"]["remote_shards"][0]["state"] = "Dead"
    with peers(first, {}) as url:
        check = {"type": "qdrant", "url": url, "expected_peers": 1}
        secrets = {"qdrant_api_key": "read-key"}
        assert told({**check, "absent": ["127.0.0.2"]}, secrets=secrets)[0] == "pass"
        assert told(check, secrets=secrets)[0] == "fail"
