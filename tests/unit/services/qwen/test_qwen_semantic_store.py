"""The semantic cache's points in a real Qdrant peer on loopback: filters, indexes, and a purge through the tier."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from conftest import ADMIN, StartTier
from qdrant_client import models
from qwen_doubles import MODEL, CacheNode, serving, until
from semantic_doubles import Words

from devmentor.qwen.purge import Scope, model_part
from devmentor.qwen.semantic import Answer, Candidate
from devmentor.qwen.semantic_store import SemanticStore, SemanticUnavailableError
from devmentor.qwen.settings import QwenSettings
from module_utils.devmentor.artifacts import select_artifacts
from module_utils.devmentor.artifacts_cache import Fetcher

REPOSITORY = Path(__file__).parents[4]
DIMENSIONS = 4
ONE, NEAR = [1.0, 0.0, 0.0, 0.0], [0.99, 0.1, 0.0, 0.0]


def binary() -> str:
    """Qdrant's, as the molecule inventory pins it, fetched into .cache where it is not there. Raises ArtifactError."""
    declared = yaml.safe_load((REPOSITORY / "molecule/inventory/group_vars/all/artifacts.yml").read_text())
    artifact = select_artifacts(declared["devmentor_artifacts"], ["qdrant"])[0]
    return str(Fetcher(REPOSITORY / ".cache").fetch(artifact).path)


@dataclass
class Peer:
    url: str
    data: Path


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    program = binary()
    data = tmp_path_factory.mktemp("qdrant")
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        http, grpc = one.getsockname()[1], two.getsockname()[1]
    settings = {
        "QDRANT__STORAGE__STORAGE_PATH": str(data / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(data / "snapshots"),
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(http),
        "QDRANT__SERVICE__GRPC_PORT": str(grpc),
        "QDRANT__SERVICE__ENABLE_STATIC_CONTENT": "false",
        "QDRANT__TELEMETRY_DISABLED": "true",
        "QDRANT__LOG_LEVEL": "WARN",
    }
    with (data / "log").open("wb") as log:
        process = subprocess.Popen([program], cwd=data, env=os.environ | settings, stdout=log, stderr=log)
    try:
        yield Peer(f"http://127.0.0.1:{http}", data)
    finally:
        process.terminate()
        process.wait(10)


def settings_of(peer: Peer, collection: str, **more: Any) -> QwenSettings:
    given: dict[str, Any] = {
        "models": {MODEL: {"url": "http://127.0.0.1:1"}, "words": {"url": "http://127.0.0.1:1", "kind": "embedding"}},
        "tenants_file": "/x",
        "cache_nodes": ["127.0.0.1:9"],
        "semantic_model": "words",
        "semantic_dimensions": DIMENSIONS,
        "semantic_collection": collection,
        "qdrant_urls": ["http://127.0.0.1:9", peer.url],
    }
    return QwenSettings(**given | more)


async def answers(peer: Peer) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get(peer.url + "/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def store(peer: Peer, request: pytest.FixtureRequest) -> AsyncIterator[SemanticStore]:
    """With the collection of this test; of its two peers the first is away."""
    await answers(peer)
    made = SemanticStore(settings_of(peer, request.node.name))
    with pytest.raises(SemanticUnavailableError):
        await made.sweep()  # the peer that is away is known from here on
    await made.ensure(DIMENSIONS)
    yield made
    await made.close()


def asked(tenant: str = "lab", model: str = MODEL, question: str = "where?") -> Candidate:
    return Candidate(f"{tenant}:{model_part(model)}:digest", question)


def answer(generation: int, text: str = "here") -> Answer:
    return Answer(json.dumps({"text": text}).encode(), "ok", generation)


async def found(store: SemanticStore, wanted: Candidate, floor: int = 0) -> list[str]:
    return [match.question for match in await store.search(wanted, NEAR, 0.9, floor)]


async def test_an_answer_below_the_floor_is_not_found(store: SemanticStore) -> None:
    await store.put(asked(question="old"), ONE, answer(1_760_000_000_000_000))
    await store.put(asked(question="new"), ONE, answer(1_760_000_000_000_001))
    assert sorted(await found(store, asked())) == ["new", "old"]
    assert await found(store, asked(), 1_760_000_000_000_001) == ["new"]
    assert await found(store, asked(tenant="other")) == []
    await store.remove(asked(question="new"))
    assert await found(store, asked()) == ["old"]


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        (Scope(), set()),
        (Scope("lab"), {("other", MODEL), ("other", "m2")}),
        (Scope(None, MODEL), {("lab", "m2"), ("other", "m2")}),
        (Scope("lab", MODEL), {("lab", "m2"), ("other", MODEL), ("other", "m2")}),
        (Scope("nobody"), {("lab", MODEL), ("lab", "m2"), ("other", MODEL), ("other", "m2")}),
    ],
    ids=["all", "tenant", "model", "both", "nobody"],
)
async def test_a_purge_removes_its_scope_and_nothing_of_its_own_generation(
    store: SemanticStore, scope: Scope, left: set[tuple[str, str]]
) -> None:
    kept = {(tenant, model) for tenant in ("lab", "other") for model in (MODEL, "m2")}
    for tenant, model in kept:
        await store.put(asked(tenant, model, "before"), ONE, answer(4))
        await store.put(asked(tenant, model, "after"), ONE, answer(5))
    assert await store.forget(scope.text, 5) == len(kept) - len(left)
    for tenant, model in kept:
        questions = ["after", "before"] if (tenant, model) in left else ["after"]
        assert sorted(await found(store, asked(tenant, model))) == questions


async def test_points_that_an_older_release_kept_are_neither_found_nor_spared(store: SemanticStore) -> None:
    payload = {"tenant": "lab", "partition": asked().partition, "question": "old", "answer": "{}", "stored_at": 9e9}
    point = models.PointStruct(id=1, vector=ONE, payload=payload)
    await store._call(lambda client: client.upsert(store._name, [point], wait=True))
    assert await found(store, asked()) == []
    assert await store.forget(Scope("lab").text, 1) == 1


async def test_indexes_come_to_a_collection_that_is_there_already_and_only_once(
    store: SemanticStore, peer: Peer
) -> None:
    for field in ("model", "generation"):
        await store._call(lambda client, field=field: client.delete_payload_index(store._name, field, wait=True))
    assert await store.ensure(DIMENSIONS) == ["payload index on model", "payload index on generation"]
    assert await store.ensure(DIMENSIONS) == []
    schema = (await store._call(lambda client: client.get_collection(store._name))).payload_schema
    assert schema.keys() == {"partition", "tenant", "model", "generation", "stored_at"}


async def test_the_command_prepares_it_idempotently(peer: Peer) -> None:
    await answers(peer)
    given = settings_of(peer, "prepared", qdrant_urls=[peer.url])
    environment = {
        "QWEN_MODELS": json.dumps({name: model.model_dump(mode="json") for name, model in given.models.items()}),
        "QWEN_TENANTS_FILE": "/x",
        "QWEN_CACHE_NODES": "127.0.0.1:9",
        "QWEN_SEMANTIC_MODEL": "words",
        "QWEN_SEMANTIC_DIMENSIONS": str(DIMENSIONS),
        "QWEN_SEMANTIC_COLLECTION": "prepared",
        "QWEN_QDRANT_URLS": peer.url,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for changed in (True, False):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "devmentor.qwen", "prepare", env=os.environ | environment, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert json.loads(output)["changed"] is changed


async def test_no_peer_is_an_error_that_names_the_collection(peer: Peer) -> None:
    store = SemanticStore(settings_of(peer, "away", qdrant_urls=["http://127.0.0.1:9", "http://127.0.0.1:10"]))
    with pytest.raises(SemanticUnavailableError, match=r"collection away: .*; "):
        await store.forget(Scope().text, 1)
    await store.close()


async def test_a_purge_through_the_tier_deletes_and_says_how_many(
    peer: Peer, start: StartTier, urls: dict[str, str]
) -> None:
    await answers(peer)
    node = CacheNode()
    async with serving(Words().app) as url, node.serving() as address:
        mine = {"semantic_dimensions": 64, "semantic_collection": "tier", "qdrant_urls": [peer.url]}
        store = SemanticStore(settings_of(peer, "tier", **mine))
        await store.ensure(64)
        tier = await start(
            models={MODEL: {"url": urls["engine"]}, "words": {"url": url, "kind": "embedding"}},
            cache_nodes=[address],
            cache_budget_s=0.5,
            cache_l1_bytes=0,
            semantic_model="words",
            semantic_budget_s=5.0,
            semantic_threshold=0.8,
            purge_poll_s=0.02,
            probe_s=60,
            **mine,
        )
        await until(lambda: b"-:-" in node.hashes.get(b"qwen:purges", {}))
        await tier.chat("where is the old harbour")
        async with asyncio.timeout(10):
            while not (await store._call(lambda client: client.count("tier"))).count:  # noqa: ASYNC110 - in Qdrant
                await asyncio.sleep(0.05)
        assert (await tier.chat("where is the old harbour please")).served_by == "cache-semantic"
        headers = {"Authorization": f"Bearer {ADMIN}"}
        done = await tier.request("POST", "/v1/cache/purge", {"tenant": "lab"}, headers)
        assert (done.status, done.body["purged"]["semantic"]) == (200, 1)
        assert (await tier.chat("where is the old harbour now")).served_by == "engine"
        await store.close()
