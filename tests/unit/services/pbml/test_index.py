"""Point ids and the comparison of a collection with its declaration."""

import asyncio
import ssl
from types import SimpleNamespace

import httpx
import pytest
from aiohttp import web
from qdrant_client.http.exceptions import UnexpectedResponse

from devmentor.common import tls
from devmentor.pbml.index import Index, IndexUnavailable, point_id
from devmentor.pbml.settings import Settings
from devmentor.pbml.store.chunks import pack, unpack
from tests.unit.services.authority import Authority


def test_point_ids_are_stable_and_apart():
    assert point_id("t", "d", 1, 0) == point_id("t", "d", 1, 0)
    parts = [
        ("t", "d", 1, 0),
        ("t", "d", 1, 1),
        ("t", "d", 2, 0),
        ("t", "e", 1, 0),
        ("u", "d", 1, 0),
        ("t", "d", 11, 0),
    ]
    assert len({point_id(*part) for part in parts}) == len(parts)


def collection(**changes):
    params = {"shard_number": 6, "replication_factor": 3, "write_consistency_factor": 2, **changes}
    vectors = SimpleNamespace(size=changes.get("size", 384), distance=SimpleNamespace(value="Cosine"))
    hnsw = {"m": 0, "payload_m": 16, "ef_construct": 256}
    hnsw |= {key: value for key, value in changes.items() if key in hnsw}
    return SimpleNamespace(vectors=vectors, **params), SimpleNamespace(**hnsw)


@pytest.mark.parametrize(
    ("changes", "peers", "expected"),
    [
        ({}, 3, []),
        ({}, 5, []),
        ({"replication_factor": 1, "write_consistency_factor": 1}, 1, []),
        ({"replication_factor": 2, "write_consistency_factor": 2}, 2, []),
        ({"replication_factor": 1}, 3, ["replication factor is 1, declared is 3"]),
        ({"m": 8, "shard_number": 1}, 3, ["shard number is 1, declared is 6", "hnsw m is 8, declared is 0"]),
        ({"payload_m": None}, 3, ["hnsw payload_m is None, declared is 16"]),
        ({"size": 768}, 3, ["vector size is 768, declared is 384"]),
    ],
)
def test_drift_is_named(changes, peers, expected):
    index = Index(Settings(tenants_file=None))
    assert index._differences(*collection(**changes), peers) == expected


def test_vectors_survive_packing():
    values = [0.25, -1.0, 3.5]
    assert unpack(pack(values)) == values
    assert len(pack(values)) == 12


@pytest.mark.parametrize(
    ("status", "raised", "asked"),
    [(400, UnexpectedResponse, 1), (422, UnexpectedResponse, 1)]
    + [(status, IndexUnavailable, 2) for status in (401, 403, 404, 408, 429, 500, 503)],
)
async def test_only_a_refused_request_is_not_worth_another_try(status, raised, asked):
    index = Index(Settings(tenants_file=None, qdrant_urls=["http://127.0.0.1:1", "http://127.0.0.1:2"]))
    clients = []

    async def call(client):
        clients.append(client)
        raise UnexpectedResponse(status, "reason", b"content", httpx.Headers())

    with pytest.raises(raised):
        await index._call("search", call)
    assert len(clients) == asked
    await index.close()


def of_three_peers(**settings):
    index = Index(Settings(tenants_file=None, qdrant_urls=[f"http://127.0.0.1:{n}" for n in (1, 2, 3)], **settings))
    index._current = 0
    return index


async def test_a_search_finds_another_peer_in_its_own_time():
    """One that lost its power takes what it is sent and never answers."""
    index = of_three_peers(fetch_timeout_s=0.4)
    asked = []

    def peer(name, answers):
        async def query_points(*_given, **_named):
            asked.append(name)
            if not answers:
                await asyncio.Event().wait()
            return SimpleNamespace(points=[])

        return SimpleNamespace(query_points=query_points)

    index._clients = [peer("gone", False), peer("second", True), peer("third", True)]
    for _ in range(2):
        async with asyncio.timeout(0.4):
            assert await index.search("t", [0.0], limit=1, min_score=0.0) == []
    assert asked == ["gone", "second", "second"]


async def test_the_only_peer_has_all_the_time():
    index = Index(Settings(tenants_file=None, qdrant_urls=["http://127.0.0.1:1"], fetch_timeout_s=0.4))

    async def query_points(*_given, **_named):
        await asyncio.sleep(0.3)
        return SimpleNamespace(points=[])

    index._clients = [SimpleNamespace(query_points=query_points)]
    async with asyncio.timeout(0.4):
        assert await index.search("t", [0.0], limit=1, min_score=0.0) == []


async def test_a_peer_on_which_a_caller_gave_up_is_not_the_next_ones_first():
    index = of_three_peers()
    asked = []

    async def call(client):
        asked.append(index._clients.index(client))
        if asked[-1] == 0:
            await asyncio.Event().wait()
        return "here"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await index._call("probe", call)
    assert await index._call("probe", call) == "here"
    assert asked == [0, 1]
    await index.close()


async def test_calls_that_fail_together_leave_the_peer_once_and_try_every_one():
    index = of_three_peers()
    asked = []

    async def call(client):
        asked.append(index._clients.index(client))
        await asyncio.sleep(0.01)
        raise OSError("away")

    results = await asyncio.gather(*(index._call("count", call) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(result, IndexUnavailable) for result in results)
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]
    assert index._current == 0
    await index.close()


async def test_a_peer_of_a_renewed_ca_is_trusted_after_a_reload(tmp_path):
    (tmp_path / "next").mkdir()
    ca, successor = Authority(tmp_path, "ca"), Authority(tmp_path / "next", "successor")
    cert, key = ca.issue("pbml")

    async def info(_request):
        return web.json_response({"title": "qdrant", "version": "1.0.0"})

    app = web.Application()
    app.router.add_get("/", info)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = tls.server_context(*successor.issue("qdrant"), ca.path)
    listener.verify_mode = ssl.CERT_NONE
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    index = Index(Settings(tenants_file=None, qdrant_urls=[url], tls_cert=cert, tls_key=key, tls_ca=ca.path))
    try:
        with pytest.raises(IndexUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await index._call("info", lambda client: client.info())
        ca.path.write_bytes(successor.path.read_bytes())
        tls.reload()
        assert (await index._call("info", lambda client: client.info())).title == "qdrant"
    finally:
        await index.close()
        await runner.cleanup()


async def test_a_collection_has_longer_than_a_search(monkeypatch):
    """Peers have 60 s to agree on it: 5 s would call every slow creation a failure."""
    made = []

    async def ensured(self) -> list[str]:
        made.append(self._settings.qdrant_timeout_s)
        return []

    monkeypatch.setattr(Index, "_ensure", ensured)
    index = Index(Settings(tenants_file=None, qdrant_timeout_s=5))
    assert await index.ensure() == []
    assert made == [75.0]
    await index.close()


async def test_a_creation_without_end_is_unavailable(monkeypatch):
    async def hangs(self) -> list[str]:
        await asyncio.Event().wait()

    monkeypatch.setattr(Index, "_ensure", hangs)
    index = Index(Settings(tenants_file=None).model_copy(update={"collection_timeout_s": 0.05}))
    with pytest.raises(IndexUnavailable, match="not done within"):
        await index.ensure()
    await index.close()


class Peer:
    """Its first creation is done and its answer lost."""

    def __init__(self, exists) -> None:
        self._exists = exists
        self.created = 0

    async def collection_exists(self, _name):
        if isinstance(self._exists, Exception):
            raise self._exists
        return self._exists or self.created > 0

    async def create_collection(self, *_arguments, **_options):
        self.created += 1
        raise UnexpectedResponse(409, "Conflict", b"already exists", httpx.Headers()) if self.created > 1 else OSError

    async def cluster_status(self):
        return None

    async def close(self):
        pass


async def test_a_creation_whose_answer_was_lost_is_seen_on_the_next_peer():
    index = Index(Settings(tenants_file=None))
    index._clients = [Peer(exists=False)] * 2
    assert "collection pbml with 6 shards, 1 replicas each" in await index._create()


@pytest.mark.parametrize(
    ("peers", "lost"),
    [((False, False), True), ((False, True), False), ((False, OSError()), False), ((OSError(), OSError()), False)],
)
async def test_a_collection_is_lost_when_every_peer_says_so(peers, lost):
    index = Index(Settings(tenants_file=None))
    index._clients = [Peer(exists) for exists in peers]
    assert await index.lost() is lost
