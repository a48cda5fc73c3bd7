"""http and tcp against real servers on loopback."""

from __future__ import annotations

import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from gate_doubles import asked, free_port, serving, told

from module_utils.devmentor.gate_checks import BODY_LIMIT
from tests.unit.verify.verify_doubles import service


def test_status_and_text_must_be_as_wanted() -> None:
    with serving(lambda request, body: (200 if request.path == "/ready?x=1" else 503, b"all is well")) as url:
        check = {"type": "http", "url": f"{url}/ready?x=1", "contains": "is well"}
        result, evidence = told(check)
        assert (result, evidence[:11]) == ("pass", "HTTP 200 in")
        result, evidence = told({**check, "contains": "on fire"})
        assert result == "fail"
        assert "'on fire' is not in the answer: all is well" in evidence
        result, evidence = told({**check, "url": f"{url}/other"})
        assert (result, evidence) == ("fail", "HTTP 503, wanted 200: all is well")
        assert told({**check, "url": f"{url}/other", "status": [200, 503]})[0] == "pass"


def test_method_body_and_headers_are_sent_and_secrets_are_masked() -> None:
    seen: list[tuple[str, bytes, Any]] = []

    def respond(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        seen.append((request.command, body, request.headers))
        return 401, f"no {request.headers['Authorization']} {request.headers['api-key']}".encode()

    with serving(respond) as url:
        check = {
            "type": "http",
            "url": url,
            "method": "POST",
            "body": '{"a": 1}',
            "headers": {"X-Plain": "seen"},
            "headers_from": {"api-key": "other"},
            "bearer_from": "key",
        }
        answer = asked(check, secrets={"key": "sk-geheim", "other": "ak-geheim"})
    [(method, body, headers)] = seen
    assert (method, body, headers["X-Plain"]) == ("POST", b'{"a": 1}', "seen")
    assert (headers["Authorization"], headers["api-key"]) == ("Bearer sk-geheim", "ak-geheim")
    assert answer.result == "fail"
    assert answer.evidence == "HTTP 401, wanted 200: no Bearer *** ***"


def test_a_secret_is_masked_before_evidence_is_cut() -> None:
    for before in (*range(135, 165, 6), *range(255, 300, 9)):
        with serving(lambda request, body, n=before: (500, b"x" * n + b"sk-geheim" * 3)) as url:
            answer = asked({"type": "http", "url": url, "bearer_from": "key"}, secrets={"key": "sk-geheim"})
        assert answer.result == "fail"
        assert "sk-" not in answer.evidence


def test_a_secret_that_no_mask_would_find_is_refused() -> None:
    result, evidence = told(
        {"type": "http", "url": "http://127.0.0.1:1/", "bearer_from": "key"}, secrets={"key": "sk\n"}
    )
    assert result == "unknown"
    assert "'key' in secrets has a line break" in evidence


def test_no_listener_fails_and_no_answer_is_unknown() -> None:
    port = free_port()
    for check in (
        {"type": "http", "url": f"http://127.0.0.1:{port}/"},
        {"type": "tcp", "host": "127.0.0.1", "port": port},
    ):
        assert told(check) == ("fail", "connection refused: nothing listens")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        assert told({"type": "http", "url": f"http://127.0.0.1:{port}/"}, limit=1.0)[0] == "unknown"
        assert time.monotonic() - began < 5
        result, evidence = told({"type": "tcp", "host": "127.0.0.1", "port": port})
        assert (result, evidence[:12]) == ("pass", "connected in")
    assert told({"type": "tcp", "host": "nobody.invalid", "port": 1})[0] == "unknown"


def test_a_server_that_trickles_for_ever_is_cut() -> None:
    """Each byte renews a socket's own timeout; only the probe's limit ends it."""

    def trickle(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _ in range(20):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.2)
        return 200, b""

    with serving(trickle) as url:
        result, evidence = told({"type": "http", "url": url}, limit=1.0)
    assert (result, evidence) == ("unknown", "no answer within 1 s")


def test_only_so_much_of_an_answer_is_read() -> None:
    with serving(lambda request, body: (200, b"x" * BODY_LIMIT + b"end")) as url:
        assert told({"type": "http", "url": url, "contains": "x"})[0] == "pass"
        assert told({"type": "http", "url": url, "contains": "end"})[0] == "fail"


def test_the_certificates_are_checked_and_shown(tls: dict[str, str]) -> None:
    with service(tls, {("GET", "/ready"): (200, {})}) as (port, _):
        check = {"type": "http", "url": f"https://127.0.0.1:{port}/ready"}
        assert told(check, tls=tls)[0] == "pass"
        for wrong in ({"cert": tls["cert"], "key": tls["key"]}, {"ca": tls["ca"]}):
            assert told(check, tls=wrong)[0] == "unknown", wrong


@pytest.mark.parametrize("status", [301, 302])
def test_a_redirect_is_not_followed(status: int) -> None:
    with serving(lambda request, body: (status, b"elsewhere")) as url:
        assert told({"type": "http", "url": url})[0] == "fail"
