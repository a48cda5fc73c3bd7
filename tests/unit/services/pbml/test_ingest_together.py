"""Several documents in one request, on a real PostgreSQL: all or none, and what each of them would have alone."""

import asyncio
from functools import partial

import private_ledger
import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.rows import dict_row

from devmentor.pbml.api import answers
from devmentor.pbml.models import MAX_TOGETHER
from devmentor.pbml.store.acceptance import NewDocument, accept_documents

PATH = "/v1/documents:batch"


@pytest.fixture(scope="module")
def server():
    with private_ledger.prepared() as conninfo:
        yield conninfo


@pytest.fixture
def conninfo(server):
    with private_ledger.database(server, "together", "prepared") as made:
        yield made


@pytest.fixture
def rows(conninfo):
    def read(query: str) -> list[tuple]:
        with psycopg.connect(conninfo, autocommit=True) as c:
            return c.execute(query).fetchall()

    return read


@pytest.fixture
def api(conninfo, tmp_path):
    return partial(private_ledger.api, conninfo, tmp_path / "tenants.json", {"t": "key of t"})


def batch(*documents: tuple[str, str]) -> dict:
    return {"documents": [{"id": name, "text": text} for name, text in documents]}


def accepted_documents() -> float:
    return REGISTRY.get_sample_value("pbml_accepted_total", {"kind": "document", "durability": "primary"}) or 0.0


async def test_each_gets_its_next_version_and_a_job(api, rows):
    async with api() as client:
        await client.post("/v1/documents", json={"id": "b", "text": "first"})
        before = accepted_documents()
        answer = await client.post(
            PATH,
            json={
                "documents": [
                    {"id": "c", "text": "of c", "title": "C", "metadata": {"n": 1}},
                    {"id": "b", "text": "of b"},
                    {"id": "a", "text": "of a", "title": 'with "quotes", {braces} and \\'},
                ]
            },
        )
    assert answer.status_code == 202
    found = answers.AcceptedDocuments.model_validate(answer.json())
    assert [(each.document_id, each.version) for each in found.documents] == [("c", 1), ("b", 2), ("a", 1)]
    marks = rows("SELECT document_id, 'pg:' || seq FROM versions WHERE content LIKE 'of %'")
    assert dict(marks) == {each.document_id: each.watermark for each in found.documents}
    assert found.watermark == max(found.documents, key=lambda each: int(each.watermark[3:])).watermark
    assert found.durability == "primary"  # this server has no standby
    assert rows("SELECT document_id, version, title, metadata, content, content_bytes FROM versions ORDER BY 1, 2") == [
        ("a", 1, 'with "quotes", {braces} and \\', {}, "of a", 4),
        ("b", 1, None, {}, "first", 5),
        ("b", 2, None, {}, "of b", 4),
        ("c", 1, "C", {"n": 1}, "of c", 4),
    ]
    assert rows("SELECT lock, task_name, queue_name, args FROM procrastinate_jobs WHERE args ->> 'version' <> '1'") == [
        ("t\nb", "pbml.process", "pbml", {"tenant": "t", "document_id": "b", "version": 2})
    ]
    assert set(rows("SELECT lock || ' ' || (args ->> 'version'), priority FROM procrastinate_jobs")) == {
        ("t\nb 1", 0),
        ("t\na 1", -1),
        ("t\nb 2", -1),
        ("t\nc 1", -1),
    }, "what comes one by one goes before an import"
    assert sorted(rows("SELECT lock FROM procrastinate_jobs")) == [("t\na",), ("t\nb",), ("t\nb",), ("t\nc",)]
    assert accepted_documents() - before == 3


@pytest.mark.parametrize(
    ("documents", "status", "code", "param", "says"),
    [
        ([], 400, "invalid_value", "documents", "at least 1"),
        ([{"id": f"d{n}", "text": "x"} for n in range(MAX_TOGETHER + 1)], 400, "invalid_value", "documents", "100"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], 400, "invalid_value", "documents", "document a is in"),
        ([{"id": "a", "text": "x"}, {"id": "b", "text": ""}], 400, "invalid_value", "documents.1.text", "at least 1"),
        ([{"id": "a", "text": "x"}, {"id": "b", "text": "123456"}], 413, "document_too_large", "documents.1.text", "5"),
        ([{"id": "a", "text": "x"}, {"id": "b", "text": "1234"}], 403, "quota_exceeded", None, "quota of bytes"),
        ([{"id": n, "text": "x"} for n in "abc"], 403, "quota_exceeded", None, "quota of documents: 0 of 2"),
    ],
)  # fmt: skip
async def test_one_that_is_refused_refuses_all(api, rows, documents, status, code, param, says):
    async with api(max_document_bytes=5, quotas={"t": {"bytes": 4, "documents": 2}}) as client:
        answer = await client.post(PATH, json={"documents": documents})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert says in error["message"]
        assert rows("SELECT FROM versions") == []
        assert (await client.post(PATH, json=batch(("a", "12"), ("b", "34")))).status_code == 202


async def test_replacements_count_by_what_they_differ(api):
    async with api(quotas={"t": {"bytes": 10, "documents": 2}}) as client:
        assert (await client.post(PATH, json=batch(("a", "12345"), ("b", "12345")))).status_code == 202
        assert (await client.post(PATH, json=batch(("b", "1234"), ("a", "123456")))).status_code == 202
        assert (await client.post(PATH, json=batch(("b", "12345"), ("a", "123456")))).status_code == 403


async def test_a_request_that_comes_again_is_answered_alike(api, rows):
    sent, key = batch(("b", "x"), ("a", "y")), {"Idempotency-Key": "k"}
    async with api() as client:
        first = await client.post(PATH, json=sent, headers=key)
        before = accepted_documents()
        again = await client.post(PATH, json=sent, headers=key)
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
        assert accepted_documents() == before
        for path, body in ((PATH, batch(("b", "x"))), ("/v1/documents", {"id": "b", "text": "x"})):
            other = await client.post(path, json=body, headers=key)
            assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(rows("SELECT FROM versions")) == 2


async def test_documents_are_locked_in_the_order_of_their_ids(conninfo):
    """What waits for one holds none behind it: two of them never wait for each other."""

    async def connection() -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(conninfo, row_factory=dict_row)

    names = ("z", "m", "a")
    documents = [NewDocument(name, None, {}, "text") for name in names]
    async with await connection() as first:
        await accept_documents(first, "t", documents)
    async with await connection() as holder, await connection() as waiting, await connection() as other:
        await other.set_autocommit(True)
        await holder.execute("SELECT FROM documents WHERE document_id = 'm' FOR UPDATE")
        task = asyncio.create_task(accept_documents(waiting, "t", documents))
        pid = waiting.info.backend_pid
        try:
            for _ in range(200):
                row = await (await other.execute("SELECT cardinality(pg_blocking_pids(%s)) AS n", (pid,))).fetchone()
                if row["n"]:
                    break
                await asyncio.sleep(0.02)
            assert row["n"] == 1
            free = await (
                await other.execute("SELECT document_id FROM documents ORDER BY document_id FOR UPDATE SKIP LOCKED")
            ).fetchall()
            assert [row["document_id"] for row in free] == ["z"]
        finally:
            await holder.rollback()  # or a failure would wait for the task for ever
            accepted = await task
        assert [(each.document_id, each.version) for each in accepted] == [("a", 2), ("m", 2), ("z", 2)]
