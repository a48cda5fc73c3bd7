"""Clients that are slow, send much, listen long, or want to be found in the log."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import time
from pathlib import Path

import pytest
from gateway_pair import until

ROOT = Path(__file__).resolve().parents[3]
REQUEST_TIMEOUT = 2  # conftest.py
MAX_BODY = 33_554_432  # the role's default
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-of-lab\r\n"


def rest(connection):
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def drip(connection, text, seconds):
    """Writes it a byte every 0.1 s; ends early where the other side closed."""
    end = time.monotonic() + seconds
    for byte in text:
        if time.monotonic() > end:
            return
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.1)


def test_a_header_that_takes_too_long_gets_408(platform, gateway):
    """Byte by byte: the time counts from the first one on, not from the last."""
    with gateway.raw() as connection:
        began = time.monotonic()
        drip(connection, b"GET /v1/models HTTP/1.1\r\nX-Slow: " + b"x" * 100, REQUEST_TIMEOUT + 0.5)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    # It is no request yet, so HAProxy says it in its own words; it has no form for this that could be set.
    assert b"408 Request Time-out" in answer
    assert REQUEST_TIMEOUT - 0.5 < time.monotonic() - began < REQUEST_TIMEOUT + 10


@pytest.mark.parametrize("framing", ["Content-Length: 200", "Transfer-Encoding: chunked"])
def test_a_body_that_takes_too_long_gets_408_and_holds_no_place(platform, gateway, framing):
    for each in platform.qwen.values():
        each.seen.clear()
    with gateway.raw() as connection:
        connection.sendall(f"{HEAD}{framing}\r\n\r\n".encode())
        connection.sendall(b"64\r\n" if "chunked" in framing else b"")
        drip(connection, b"x" * 100, REQUEST_TIMEOUT / 2)
        assert {gateway.stat(host, "scur") for host in ("h1", "h2")} == {"0"}
        drip(connection, b"x" * 100, REQUEST_TIMEOUT / 2 + 0.5)
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 408 ")
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    assert json.loads(content)["error"]["code"] == "request_timeout"
    assert [path for each in platform.qwen.values() for path in each.paths] == []


def test_nothing_at_all_is_no_error_in_the_log(gateway):
    """A connection that is opened ahead and never used."""
    before = len(gateway.requests())
    with gateway.raw() as connection:
        rest(connection)
    assert len(gateway.requests()) == before


def test_the_largest_body_arrives_whole_and_one_byte_more_does_not(platform, gateway):
    answer = gateway.ask("/v1/chat/completions", "POST", body=bytes(MAX_BODY))
    assert (answer.status, answer.json["body"]) == (200, MAX_BODY)
    for each in platform.qwen.values():
        each.seen.clear()
    with gateway.raw() as connection:
        connection.sendall(f"{HEAD}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 "), "before the body is sent"
    assert b"request_too_large" in answer
    assert [path for each in platform.qwen.values() for path in each.paths] == []


def test_a_client_that_waits_to_be_told_to_continue(gateway):
    with gateway.raw() as connection:
        connection.sendall(f"{HEAD}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"hello")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_stream_outlasts_every_timeout_and_each_event_comes_when_it_is_written(gateway):
    """Longer than a request may take and an instance may be silent (8 s, conftest.py); its own pauses are short."""
    response = gateway.open("/v1/stream/20x0.5", method="POST", body=b"{}")
    assert response.getheader("content-encoding") is None
    times = []
    while line := response.readline():
        if line.startswith(b"data:"):
            times.append(time.monotonic())
    assert len(times) == 20
    assert times[-1] - times[0] > 9
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.3 < statistics.median(pauses) < 0.7, "events came in pieces of more than one"


def test_everything_that_pbml_has_is_asked_of_pbml(platform, gateway):
    document = json.loads((ROOT / "docs" / "pbml-openapi.json").read_text())
    paths = [re.sub(r"\{[^}]*\}", "a", path) for path in document["paths"]]
    assert len(paths) > 10
    for path in paths:
        assert gateway.ask(path).status == 200
    arrived = [path for each in platform.pbml.values() for path in each.paths]
    assert [path for path in paths if path not in arrived] == []


def test_the_request_id_is_ours_and_the_same_everywhere(platform, gateway):
    answer = gateway.ask("/v1/models", X_Request_Id="forged")
    own = answer.headers["x-request-id"]
    assert own != "forged"
    assert answer.json["headers"]["x-request-id"] == own
    until(lambda: any(line["request_id"] == own for line in gateway.requests()))
    line = next(line for line in gateway.requests() if line["request_id"] == own)
    assert (line["tenant"], line["path"], line["status"]) == ("lab", "/v1/models", 200)
    assert line["server"] in ("qwen/h1", "qwen/h2")
    assert not any("key-of-lab" in text for text in gateway.log)


@pytest.mark.parametrize(("key", "path", "status"), [("wrong", "/v1/models", 401), ("key-of-lab", "/v2/models", 404)])
def test_what_the_gateway_answers_itself_has_an_id_in_the_log_as_well(gateway, key, path, status):
    answer = gateway.ask(path, key=key)
    assert answer.status == status
    until(lambda: any(line["request_id"] == answer.headers["x-request-id"] for line in gateway.requests()))
