"""The client, against replicas that answer as they are told."""

import time

import pytest
from aiohttp import web

from devmentor.pbml.client import Client, Refused, Unavailable
from devmentor.pbml.models import DocumentsRequest


class Replica:
    """Answers with the next of `answers` (status, body), and the last one for ever."""

    def __init__(self) -> None:
        self.answers = [(202, {"watermark": "pg:1", "durability": "quorum"})]
        self.requests: list[tuple[str, str, str | None]] = []
        self.bodies: list[bytes] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path_qs, request.headers.get("Idempotency-Key")))
        self.bodies.append(await request.read())
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(body, status=status)


@pytest.fixture
async def replicas():
    made, runners = [], []
    for _ in range(2):
        replica, app = Replica(), web.Application()
        app.router.add_route("*", "/{path:.*}", replica.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        replica.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        made.append(replica)
        runners.append(runner)
    yield made
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def client(replicas):
    async with Client([replica.url for replica in replicas], "key", deadline_s=3) as made:
        yield made


def error(code: str) -> dict:
    return {"error": {"message": "no", "type": "t", "code": code, "param": None}}


async def test_a_write_that_was_not_acknowledged_is_sent_again_with_the_same_key(client, replicas):
    replicas[0].answers = [(503, error("outcome_unknown"))]
    replicas[1].answers = [(503, error("database_unavailable")), *replicas[1].answers]
    assert await client.ingest("a", "text") == "pg:1"
    keys = {key for replica in replicas for _method, _path, key in replica.requests}
    assert len(keys) == 1
    assert None not in keys
    assert len(replicas[0].requests) + len(replicas[1].requests) >= 3
    assert client.newest == "pg:1"


async def test_two_writes_have_two_keys(client, replicas):
    await client.add_turn("c", "user", "hello")
    await client.add_turn("c", "user", "hello")
    await client.delete("a/b", idempotency_key="mine")
    keys = [key for _method, _path, key in replicas[0].requests]
    assert keys[0] != keys[1]
    assert (keys[2], replicas[0].requests[2][1]) == ("mine", "/v1/documents/a%2Fb")


async def test_several_documents_are_one_request(client, replicas):
    documents = [{"id": "a", "text": "ä"}, {"id": "b", "text": "y", "title": "B", "metadata": {"n": 1}}]
    assert await client.ingest_many(documents, idempotency_key="k") == "pg:1"
    assert replicas[0].requests == [("POST", "/v1/documents:batch", "k")]
    sent = DocumentsRequest.model_validate_json(replicas[0].bodies[0])
    assert [each.model_dump(exclude_unset=True) for each in sent.documents] == documents


async def test_what_is_wrong_is_said_at_once(client, replicas):
    replicas[0].answers = [(400, error("invalid_value"))]
    with pytest.raises(Refused) as refused:
        await client.ingest("a", "text")
    assert (refused.value.status, refused.value.code) == (400, "invalid_value")
    assert replicas[1].requests == []


async def test_a_watermark_is_waited_for(client, replicas):
    found = {"chunks": []}
    for replica in replicas:
        replica.answers = [(409, error("watermark_not_reached"))]
    replicas[1].answers += [(200, found)]
    assert await client.context("?", token_budget=9, watermark="pg:7") == found
    assert len(replicas[1].requests) == 2


async def test_the_deadline_is_kept_and_every_reason_said(replicas):
    replicas[0].answers = replicas[1].answers = [(503, error("database_unavailable"))]
    start = time.monotonic()
    async with Client([*(r.url for r in replicas), "http://127.0.0.1:1"], "key", deadline_s=0.5) as client:
        with pytest.raises(Unavailable) as away:
            await client.status("a")
    assert time.monotonic() - start < 2
    assert len(away.value.reasons) == 3


async def test_a_replica_that_failed_is_left_alone_for_a_moment(client, replicas):
    replicas[0].answers = [(500, error("internal_error"))]
    for _ in range(3):
        await client.ingest("a", "text")
    assert (len(replicas[0].requests), len(replicas[1].requests)) == (1, 3)


async def test_pages_are_followed_to_the_end(client, replicas):
    replicas[0].answers = [
        (200, {"documents": [{"document_id": "a"}], "next_cursor": "x"}),
        (200, {"documents": [], "next_cursor": "y"}),
        (200, {"documents": [{"document_id": "b"}], "next_cursor": None}),
    ]
    assert [d["document_id"] async for d in client.documents(status="failed")] == ["a", "b"]
    assert replicas[0].requests[1][1] == "/v1/documents?status=failed&cursor=x"
