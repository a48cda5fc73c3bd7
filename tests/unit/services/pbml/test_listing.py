"""Endpoints that list, retry, delete and export, on a ledger in memory; and the document that describes all."""

import hashlib
import json
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pbml_doubles import Ledger
from pydantic import ValidationError

from devmentor.pbml import commands, jobs
from devmentor.pbml.api import answers, application, openapi, service
from devmentor.pbml.api.admin import groups
from devmentor.pbml.maintenance import Maintenance
from devmentor.pbml.models import DocumentRequest, TurnRequest
from devmentor.pbml.pipeline import Pipeline
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import listing, pins, removal
from devmentor.pbml.store.acceptance import accept_deletion, accept_document, accept_turn
from devmentor.pbml.store.ledger import pending_versions, recent_turns
from devmentor.pbml.store.versions import count_failure

KEY = "a key"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def api(tmp_path, ledger, monkeypatch):
    """The endpoints, with the ledger as their database and a queue that only notes what is put in."""
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    monkeypatch.setattr(service, "Database", lambda *_: ledger)
    ledger.queued = []

    async def defer(_app, _connection, tenant, accepted) -> None:
        ledger.queued.extend((tenant, each.document_id, each.version) for each in accepted)

    monkeypatch.setattr(jobs, "defer", defer)
    transport = httpx.ASGITransport(application(Settings(tenants_file=tenants)))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://pbml", headers=headers) as made:
        yield made


async def ingest(c: Ledger, *names: str) -> None:
    for name in names:
        await accept_document(c, "t", name, None, {"k": 1}, f"text of {name}")


async def say(c: Ledger, conversation: str, *words: str) -> None:
    for word in words:
        await accept_turn(c, "t", conversation, f"~turn/{conversation}/{word}", "user", word)


async def pages(api, path: str, key: str, **query) -> list[list[dict]]:
    found, cursor = [], {}
    while True:
        answer = (await api.get(path, params={**query, **cursor})).json()
        found.append(answer[key])
        if answer["next_cursor"] is None:
            return found
        cursor = {"cursor": answer["next_cursor"]}


async def test_documents_are_listed_once_whatever_is_written_meanwhile(api, ledger):
    await ingest(ledger, "a", "c", "e", "g")
    await say(ledger, "x", "hello")
    first = answers.Documents.model_validate((await api.get("/v1/documents?limit=2")).json())
    await ingest(ledger, "b", "d", "c")
    await accept_deletion(ledger, "t", "a")
    rest = await pages(api, "/v1/documents", "documents", limit=2, cursor=first.next_cursor)
    assert [d.document_id for d in first.documents] == ["a", "c"]
    assert [[d["document_id"] for d in page] for page in rest] == [["d", "e"], ["g"]]


async def test_documents_by_prefix_and_by_the_newest_versions_state(api, ledger):
    await ingest(ledger, "a/1", "a/2", "ab", "b")
    await count_failure(ledger, "t", "a/2", 1, "TextRefused: no", 1)
    (page,) = await pages(api, "/v1/documents", "documents", prefix="a/")
    assert [d["document_id"] for d in page] == ["a/1", "a/2"]
    (failed,) = (await pages(api, "/v1/documents", "documents", status="failed"))[0]
    assert (failed["document_id"], failed["failure"]) == ("a/2", "TextRefused: no")


async def test_a_rare_state_does_not_make_one_request_a_walk_over_everything(api, ledger, monkeypatch):
    monkeypatch.setattr(listing, "SCAN", 3)
    await ingest(ledger, *"abcdefg")
    await count_failure(ledger, "t", "f", 1, "TextRefused: no", 1)
    found = await pages(api, "/v1/documents", "documents", status="failed")
    assert [[d["document_id"] for d in page] for page in found] == [[], ["f"], []]


async def test_conversations_and_their_turns(api, ledger):
    await say(ledger, "c1", "one", "two", "three")
    await say(ledger, "c2", "other")
    listed = answers.Conversations.model_validate((await api.get("/v1/conversations")).json())
    assert [c.conversation_id for c in listed.conversations] == ["c1", "c2"]
    found = await pages(api, "/v1/conversations/c1/turns", "turns", limit=2)
    assert [[turn["content"] for turn in page] for page in found] == [["one", "two"], ["three"]]
    answers.Turns.model_validate({"turns": found[0], "next_cursor": None})


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/documents?cursor=!", "invalid_value"),
        ("/v1/documents?cursor=_w", "invalid_cursor"),
        ("/v1/documents?limit=0", "invalid_value"),
        ("/v1/documents?limit=1&limit=2", "invalid_value"),
        ("/v1/documents?nonsense=1", "invalid_value"),
        ("/v1/conversations/c/turns?cursor=YWJj", "invalid_cursor"),
        ("/v1/conversations/a%20b/turns", "invalid_value"),
    ],
)
async def test_a_listing_that_can_not_be(api, path, code):
    answer = await api.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_a_deleted_conversation_is_gone_at_once_and_its_remains_later(api, ledger, monkeypatch):
    monkeypatch.setattr(removal, "BATCH", 2)
    await say(ledger, "c", *"12345")
    await say(ledger, "other", "kept")
    answer = await api.delete("/v1/conversations/c")
    gone = answers.DeletedConversation.model_validate(answer.json())
    assert (answer.status_code, gone.turns, gone.watermark) == (202, 5, "pg:11")
    assert await recent_turns(ledger, "t", "c", 9) == []
    assert await pending_versions(ledger, "t", 99, "c", None, 9) == []
    assert [c["conversation_id"] for c in (await api.get("/v1/conversations")).json()["conversations"]] == ["other"]
    assert (await api.delete("/v1/conversations/c")).status_code == 404
    assert "1" in ledger.texts


class Points:
    """The index; which documents it was told to forget."""

    def __init__(self) -> None:
        self.removed = []

    async def lost(self) -> bool:
        return False

    async def count(self, tenant=None) -> int:
        return 0 if tenant else 99

    async def remove(self, tenant, document_id, up_to) -> None:
        self.removed.append((tenant, document_id, up_to))

    async def remove_documents(self, tenant, ids) -> None:
        self.removed += [(tenant, name, None) for name in ids]


async def test_maintenance_removes_what_is_left_of_deletions_after_the_jobs_of_older_versions(ledger):
    index = Points()
    loop = Maintenance(Settings(tenants_file=None, reconcile_points=0), ledger, index)
    await say(ledger, "c", "1", "2")
    await removal.delete_turns(ledger, "t", "c")
    await loop.turn()
    assert index.removed == [], "the turns' own jobs have yet to run"
    for name in ("1", "2"):
        await Pipeline(ledger, index, None, 500, 10).run("t", f"~turn/c/{name}", 1)
    index.removed.clear()
    await loop.turn()
    assert index.removed == [("t", "~turn/c/1", None), ("t", "~turn/c/2", None)]
    assert set(ledger.texts) == {None}
    assert ledger.statuses == ["superseded", "superseded", "live", "live"]
    index.removed.clear()
    await loop.turn()
    assert index.removed == []


@pytest.fixture
def stores(ledger, monkeypatch):
    """The operator's commands, with the ledger and an index that has nothing."""

    @asynccontextmanager
    async def opened(_settings):
        yield ledger, Points()

    monkeypatch.setattr(commands, "stores", opened)
    monkeypatch.setattr(commands, "_SAY_EVERY_S", 0.01)
    monkeypatch.setattr(commands, "_GIVE_UP_S", 0.05)


async def test_a_tenant_that_can_still_write_is_not_deleted(tmp_path, ledger, stores):
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    await ingest(ledger, "a")
    with pytest.raises(commands.CommandFailed, match="has a key"):
        await commands.delete_tenant(Settings(tenants_file=tenants), "t")
    assert ledger.texts == ["text of a"]


async def test_a_deleted_tenant_has_nothing_left(tmp_path, ledger, stores, monkeypatch):
    monkeypatch.setattr(removal, "BATCH", 2)
    tenants = tmp_path / "tenants.json"
    tenants.write_text("[]")
    settings = Settings(tenants_file=tenants, reconcile_points=0)
    await ingest(ledger, "a", "b", "c")
    await say(ledger, "c", "1")
    await accept_document(ledger, "u", "kept", None, {}, "kept")
    for tenant, conversation in (("t", pins.OF_TENANT), ("t", "c"), ("u", pins.OF_TENANT)):
        await pins.put(ledger, tenant, conversation, "a", "fact", 32)
    with pytest.raises(commands.CommandFailed, match="no worker removes them"):
        await commands.delete_tenant(settings, "t")
    assert await recent_turns(ledger, "t", "c", 9) == [], "gone for readers all the same"
    for name in ("a", "b", "c", "~turn/c/1"):
        await Pipeline(ledger, Points(), None, 500, 10).run("t", name, 1)
    await Maintenance(settings, ledger, Points()).turn()
    done = await commands.delete_tenant(settings, "t")
    assert done == {"changed": False, "deleted": 0, "watermark": None, "points_left": 0}
    assert [text for text in ledger.texts if text is not None] == ["kept"]
    assert [len(await pins.listed(ledger, t, "c", tenants_too=True)) for t in ("t", "u")] == [0, 1]


async def test_a_version_that_was_given_up_is_run_again_from_where_it_was(api, ledger):
    await ingest(ledger, "d", "e")
    for name in "de":
        await count_failure(ledger, "t", name, 1, "TextRefused: no", 1)
    ledger.db.execute("UPDATE versions SET embedded_at = 1 WHERE document_id = 'e'")
    for name, status in (("d", "received"), ("e", "embedded")):
        answer = await api.post(f"/v1/documents/{name}/retry")
        accepted = answers.AcceptedDocument.model_validate(answer.json())
        assert (answer.status_code, accepted.document_id, accepted.version) == (202, name, 1)
        row = ledger.db.execute("SELECT * FROM versions WHERE document_id = ?", (name,)).fetchone()
        assert (row["status"], row["failure"], row["failed_runs"]) == (status, None, 0)
    assert ledger.queued == [("t", "d", 1), ("t", "e", 1)]
    assert (await api.post("/v1/documents/d/retry")).json()["error"]["code"] == "not_failed"
    assert (await api.post("/v1/documents/none/retry")).status_code == 404


async def test_an_older_version_that_failed_is_not_revived(api, ledger):
    await ingest(ledger, "d")
    await count_failure(ledger, "t", "d", 1, "TextRefused: no", 1)
    await ingest(ledger, "d")
    assert (await api.post("/v1/documents/d/retry")).status_code == 409


async def test_an_export_is_what_the_endpoints_take_and_says_that_it_is_whole(api, ledger):
    await ingest(ledger, "a", "b", "c", "b")
    await accept_deletion(ledger, "t", "c")
    await say(ledger, "x", "one", "two")
    lines = [json.loads(line) for line in (await api.get("/v1/export")).text.splitlines()]
    documents = [DocumentRequest.model_validate(line["document"]) for line in lines[:2]]
    assert [(d.id, d.text, d.metadata) for d in documents] == [(n, f"text of {n}", {"k": 1}) for n in "ab"]
    turns = [TurnRequest.model_validate(line["turn"]) for line in lines[2:4]]
    assert [(t.conversation_id, t.content) for t in turns] == [("x", "one"), ("x", "two")]
    assert lines[4:] == [{"end": {"documents": 2, "turns": 2}}]


def test_large_documents_are_read_a_few_at_a_time():
    rows = [{"document_id": name, "content_bytes": size} for name, size in zip("abcde", (0, 6, 5, 20, 1), strict=True)]
    assert groups(rows, 10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert groups([], 10) == []


async def test_a_status_is_as_the_document_says(api, ledger):
    await ingest(ledger, "d")
    body = (await api.get("/v1/documents/d")).json()
    answers.DocumentStatus.model_validate(body)
    with pytest.raises(ValidationError):
        answers.DocumentStatus.model_validate({**body, "surplus": 1})


async def test_every_route_is_in_the_document_with_all_that_a_client_needs(api):
    described = (await api.get("/v1/openapi.json")).json()
    app = api._transport.app
    routes = {
        (method, route.path.replace(":path}", "}"))
        for route in app.routes
        if route.path not in ("/health", "/ready", "/metrics")
        for method in route.methods - {"HEAD"}
    }
    operations = {(m.upper(), path): o for path, of in described["paths"].items() for m, o in of.items()}
    assert operations.keys() == routes
    assert len({o["operationId"] for o in operations.values()}) == len(operations)
    for (method, path), operation in operations.items():
        assert operation["summary"]
        named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
        for status, answer in operation["responses"].items():
            assert answer["content"], (method, path, status)
    assert set(_refs(described)) <= {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}


def _refs(part):
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for inner in part.values():
            yield from _refs(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _refs(inner)


def test_the_document_in_docs_is_of_this_release():
    """`devmentor-pbml openapi > docs/pbml-openapi.json` writes it."""
    made = json.loads(json.dumps(openapi()))
    written = json.loads((Path(__file__).parents[4] / "docs/pbml-openapi.json").read_text())
    assert written == made
