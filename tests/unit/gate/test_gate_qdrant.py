"""qdrant: a real cluster of three peers, judged by what every peer sees; the canary's vector."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate_doubles import free_port, told
from gate_qdrant import Peer, call, peer, until_up

from module_utils.devmentor.checks_base import Failed, Recorder
from module_utils.devmentor.checks_qdrant import check_vector, judge_found
from module_utils.devmentor.gate_cluster import judge_points, peer_urls
from tests.unit.verify.verify_doubles import plan

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    """Three peers with collections of two replicas and of three."""
    folder = tmp_path_factory.mktemp("qdrant")
    ports = (free_port(), free_port(), free_port())
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(folder / "0", HOSTS[0], ports))]
        until_up(peers[0].url)
        for number, host in enumerate(HOSTS[1:], start=1):
            join = ("--bootstrap", f"http://{HOSTS[0]}:{ports[2]}")
            peers.append(stack.enter_context(peer(folder / str(number), host, ports, *join)))
            until_up(peers[-1].url)
        while len(call(peers[0].url, "GET", "/cluster")["peers"]) < 3:
            time.sleep(0.1)
        for name, factor in (("whole", 3), ("few", 2)):
            vectors = {"vectors": {"size": 2, "distance": "Cosine"}}
            call(
                peers[0].url,
                "PUT",
                f"/collections/{name}",
                {**vectors, "shard_number": 2, "replication_factor": factor},
            )
            points = [{"id": number, "vector": [1.0, float(number)]} for number in range(20)]
            call(peers[0].url, "PUT", f"/collections/{name}/points?wait=true", {"points": points})
        yield peers


def ask(cluster: list[Peer], expected: int = 3, **more: Any) -> tuple[str, str]:
    return told({"type": "qdrant", "url": cluster[0].url, "expected_peers": expected, **more})


def until(cluster: list[Peer], result: str, part: str = "", **more: Any) -> tuple[str, str]:
    """The first answer with this result and this part in its evidence, or the last one after a minute."""
    end = time.monotonic() + 60
    while True:
        answer = ask(cluster, **more)
        if (answer[0] == result and part in answer[1]) or time.monotonic() > end:
            return answer
        time.sleep(0.3)


def test_a_whole_cluster_passes_by_every_peers_view(cluster: list[Peer]) -> None:
    result, evidence = until(cluster, "pass", points_equal=True)
    assert result == "pass", evidence
    assert evidence.startswith("3 peers, commit ")
    assert "2 collections Active as seen from every peer, no transfer, points equal" in evidence


def test_another_number_of_peers_fails(cluster: list[Peer]) -> None:
    until(cluster, "pass")
    result, evidence = ask(cluster, expected=2)
    assert result == "fail"
    assert "knows 3 peers of 2" in evidence


def test_a_peer_that_is_frozen_is_unknown(cluster: list[Peer]) -> None:
    until(cluster, "pass")
    last = cluster[2].process
    last.send_signal(signal.SIGSTOP)
    try:
        result, evidence = told({"type": "qdrant", "url": cluster[0].url, "expected_peers": 3}, limit=2.0)
        assert result == "unknown", evidence
    finally:
        last.send_signal(signal.SIGCONT)
    assert until(cluster, "pass")[0] == "pass"


def test_a_replica_that_is_not_active_fails_with_the_name_of_who_sees_it(cluster: list[Peer]) -> None:
    until(cluster, "pass")
    own = call(cluster[2].url, "GET", "/collections/whole/cluster")
    shard = own["local_shards"][0]["shard_id"]
    call(
        cluster[0].url,
        "POST",
        "/collections/whole/cluster",
        {"drop_replica": {"shard_id": shard, "peer_id": own["peer_id"]}},
    )
    try:
        result, evidence = until(cluster, "fail", "whole as seen from")
        assert result == "fail"
        assert "whole as seen from http://127.0.0." in evidence
        assert "3 of each are needed" in evidence
    finally:
        source = call(cluster[0].url, "GET", "/collections/whole/cluster")["peer_id"]
        move = {"shard_id": shard, "from_peer_id": source, "to_peer_id": own["peer_id"], "method": "stream_records"}
        call(cluster[0].url, "POST", "/collections/whole/cluster", {"replicate_shard": move})
    assert until(cluster, "pass")[0] == "pass"


def test_a_peer_that_is_dead_fails_by_name(cluster: list[Peer]) -> None:
    """The last test of the cluster: the peer does not come back."""
    until(cluster, "pass")
    cluster[2].process.kill()
    cluster[2].process.wait(10)
    result, evidence = until(cluster, "fail", "127.0.0.3")
    assert (result, evidence) == ("fail", f"{cluster[2].url} refuses connections: nothing listens")


def test_nobody_there_fails() -> None:
    check = {"type": "qdrant", "url": f"http://127.0.0.1:{free_port()}", "expected_peers": 1}
    assert told(check) == ("fail", f"{check['url']} refuses connections: nothing listens")


def test_urls_of_all_peers_but_absent_ones() -> None:
    known = {"1": "http://10.0.0.1:6335/", "2": "http://10.0.0.2:6335/", "3": "http://[fd00::3]:6335/"}
    assert peer_urls("https://name:6333", "2", known, []) == [
        "https://10.0.0.1:6333",
        "https://name:6333",
        "https://[fd00::3]:6333",
    ]
    assert peer_urls("https://name:6333", "2", known, ["10.0.0.1"]) == ["https://name:6333", "https://[fd00::3]:6333"]


def test_unequal_points_fail() -> None:
    def view(count: int) -> dict[str, Any]:
        return {"local_shards": [{"shard_id": 0, "points_count": 5}, {"shard_id": 1, "points_count": count}]}

    judge_points("c", {"a": view(7), "b": view(7)})
    with pytest.raises(Failed, match="c shard 1 has unequal points: a 7, b 8"):
        judge_points("c", {"a": view(7), "b": view(8)})


def test_a_stored_vector_is_found_through_a_peer(tmp_path: Path, tls: dict[str, str]) -> None:
    ports = (free_port(), free_port(), free_port())
    settings = {
        "QDRANT__SERVICE__ENABLE_TLS": "true",
        "QDRANT__TLS__CERT": tls["cert"],
        "QDRANT__TLS__KEY": tls["key"],
        "QDRANT__TLS__CA_CERT": tls["ca"],
        "QDRANT__SERVICE__API_KEY": "write-key",
        "QDRANT__SERVICE__READ_ONLY_API_KEY": "read-key",
    }
    context = ssl.create_default_context(cafile=tls["ca"])

    with peer(tmp_path / "one", "127.0.0.1", ports, **settings) as one:

        def put(path: str, body: dict[str, Any]) -> None:
            headers = {"api-key": "write-key", "Content-Type": "application/json"}
            request = urllib.request.Request(one.url + path, json.dumps(body).encode(), headers, method="PUT")
            end = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(request, context=context, timeout=10).close()
                    return
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.2)

        def canary() -> tuple[str, str]:
            mine = plan(tls, ports={"qdrant_http": ports[0]}, secrets={"qdrant_api_key": "read-key"}, collection="c")
            recorder = Recorder(mine, "qdrant")
            check_vector(mine, recorder)
            [row] = recorder.rows
            return row.result, row.evidence

        put("/collections/c", {"vectors": {"size": 4, "distance": "Cosine"}})
        assert canary() == ("pass", "the collection has no points, and a search says so")
        points = [{"id": number, "vector": [1.0, number, 0, 2.0]} for number in range(5)]
        put("/collections/c/points?wait=true", {"points": points})
        assert canary() == ("pass", "the vector of 0 found at 1.0000")
    assert canary()[0] == "fail"


def test_a_search_that_does_not_find_its_own_vector_fails() -> None:
    assert "found at 0.9000" in judge_found({"id": 1}, [{"id": 1, "score": 0.9}])
    assert "found at 1.0000" in judge_found({"id": 1}, [{"id": 2, "score": 1.0}])
    with pytest.raises(Failed, match="finds others"):
        judge_found({"id": 1}, [{"id": 2, "score": 0.5}])
    with pytest.raises(Failed, match="finds nothing"):
        judge_found({"id": 1}, [])
