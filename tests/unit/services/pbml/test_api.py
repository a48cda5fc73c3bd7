"""What the API refuses before it asks the database, which is away here."""

import hashlib
import json

import httpx
import pytest

from devmentor.pbml.api import application
from devmentor.pbml.settings import Settings

KEY = "a key"


@pytest.fixture
async def client(tmp_path):
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps([{"tenant": "t", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}]))
    transport = httpx.ASGITransport(application(Settings(tenants_file=tenants)))
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://pbml", headers=headers) as made:
        yield made


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/v1/documents/%00", "document_id"),
        ("DELETE", "/v1/documents/a%00b", "document_id"),
        ("GET", "/v1/context/version?conversation_id=%00", "conversation_id"),
        ("GET", "/v1/context/version?conversation_id=a%20b", "conversation_id"),
        ("GET", "/v1/pins?conversation_id=%00", "conversation_id"),
        ("GET", "/v1/pins/%00", "name"),
        ("DELETE", "/v1/pins/a%20b", "name"),
        ("DELETE", "/v1/pins/a?conversation_id=", "conversation_id"),
    ],
)
async def test_a_name_that_can_not_be_stored(client, method, path, param):
    answer = await client.request(method, path)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
async def test_a_number_that_json_does_not_have(client, value):
    answer = await client.post("/v1/documents", content=f'{{"id": "a", "text": "t", "metadata": {{"k": {value}}}}}')
    assert answer.status_code == 400
    assert "metadata.k" in answer.json()["error"]["message"]
    assert "no infinity" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/pins/-a", {"text": "fact"}, 400, "invalid_value"),
        ("/v1/pins/a", {"text": ""}, 400, "invalid_value"),
        ("/v1/pins/a", {"text": "fact", "name": "b"}, 400, "invalid_value"),
        ("/v1/pins/a", {"text": "x" * 8193}, 413, "pin_too_large"),
        ("/v1/pins/a", {"text": "fact"}, 503, "database_unavailable"),
    ],
)
async def test_a_pin_that_is_refused(client, path, body, status, code):
    answer = await client.put(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_pins_need_a_key(client):
    for method, path in (("GET", "/v1/pins"), ("PUT", "/v1/pins/a"), ("GET", "/v1/pins/a"), ("DELETE", "/v1/pins/a")):
        answer = await client.request(method, path, headers={"Authorization": "Bearer another"})
        assert answer.status_code == 401
