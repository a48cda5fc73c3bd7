"""The application shell, driven over ASGI without a socket."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from devmentor.common import health
from devmentor.common.auth import TenantKeys
from devmentor.common.errors import ApiError
from devmentor.common.health import Check, Readiness
from devmentor.common.logs import JsonFormatter
from devmentor.common.web import create_app


@asynccontextmanager
async def client(app) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as session:
        yield session


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"size": len(await request.body())})


async def broken(_request: Request) -> JSONResponse:
    raise RuntimeError("secret detail")


async def refused(_request: Request) -> JSONResponse:
    raise ApiError(409, "watermark_not_reached", "not here yet", param="watermark", headers={"Retry-After": "2"})


async def stream(_request: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"data: 1\n\n", b"data: 2\n\n"):
            yield part

    return StreamingResponse(parts(), media_type="text/event-stream")


def service(checks: list[Check] | None = None, **options):
    routes = [
        Route("/echo/{name}", echo, methods=["POST"]),
        Route("/broken", broken),
        Route("/refused", refused),
        Route("/stream", stream),
    ]
    return create_app("test", readiness=Readiness("test", checks or [], max_age_s=0), routes=routes, **options)


async def test_request_id_is_kept_where_safe_and_made_otherwise():
    async with client(service()) as session:
        kept = await session.get("/health", headers={"X-Request-Id": "abc-1.2:3"})
        assert kept.headers["x-request-id"] == "abc-1.2:3"
        made = await session.get("/health", headers={"X-Request-Id": "a b\tc"})
        assert len(made.headers["x-request-id"]) == 32


async def test_errors_have_openai_form_and_hide_internals():
    async with client(service()) as session:
        answer = await session.get("/refused")
        assert answer.status_code == 409
        assert answer.headers["retry-after"] == "2"
        assert answer.json() == {
            "error": {
                "message": "not here yet",
                "type": "conflict_error",
                "code": "watermark_not_reached",
                "param": "watermark",
            }
        }
        answer = await session.get("/broken")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret detail" not in answer.text
        assert answer.headers["x-request-id"]
        assert (await session.get("/nowhere")).json()["error"]["type"] == "not_found_error"
        assert (await session.get("/echo/a")).json()["error"]["code"] == "method_not_allowed"


async def test_body_limit_by_header_and_by_count():
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 500

    async with client(service(max_body_bytes=1024)) as session:
        assert (await session.post("/echo/a", content=b"x" * 1024)).json() == {"size": 1024}
        assert (await session.post("/echo/a", content=b"x" * 1025)).status_code == 413
        unannounced = await session.post("/echo/a", content=chunks())
        assert unannounced.status_code == 413
        assert unannounced.json()["error"]["code"] == "body_too_large"


@asynccontextmanager
async def listening(app) -> AsyncIterator[int]:
    """The service on a port of loopback, by the server that it runs on."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
    server.capture_signals = nullcontext
    running = asyncio.create_task(server.serve())
    while not server.started:
        assert not running.done()
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def test_a_body_that_takes_too_long_gets_408_and_leaves_its_place():
    async with listening(service(body_seconds=0.5, max_concurrent=1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(3):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.1)
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "request_timeout"
        writer.close()
        async with httpx.AsyncClient() as session:
            again = await session.post(f"http://127.0.0.1:{port}/echo/a", content=b"x")
            assert again.json() == {"size": 1}


async def test_the_time_of_the_body_is_not_that_of_the_answer():
    async def slow(request: Request) -> StreamingResponse:
        await request.body()

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(5):
                await asyncio.sleep(0.1)
                yield b"x"

        return StreamingResponse(parts())

    for method in ("GET", "POST"):
        routes = [Route("/slow", slow, methods=[method])]
        app = create_app("test", readiness=Readiness("test", [], max_age_s=0), routes=routes, body_seconds=0.2)
        async with listening(app) as port, httpx.AsyncClient() as session:
            assert (await session.request(method, f"http://127.0.0.1:{port}/slow")).text == "xxxxx"


async def test_concurrency_limit_sheds_with_429_but_not_the_operator():
    async with client(service(max_concurrent=0)) as session:
        shed = await session.post("/echo/a")
        assert (shed.status_code, shed.headers["retry-after"]) == (429, "1")
        assert (await session.get("/health")).status_code == 200


async def test_streams_pass_through():
    async with client(service()) as session:
        assert (await session.get("/stream")).text == "data: 1\n\ndata: 2\n\n"


async def test_metrics_name_the_route_not_the_path():
    async with client(service()) as session:
        await session.post("/echo/a-very-special-name")
        text = (await session.get("/metrics")).text
    assert 'devmentor_http_requests_total{code="200",method="POST",route="/echo/{name}",service="test"}' in text
    assert "a-very-special-name" not in text


async def test_ready_reports_each_check_and_drains():
    async def good() -> str:
        return "fine"

    async def bad() -> str:
        raise ConnectionError("refused by 192.0.2.1")

    optional = Check("index", bad, required=False)
    app = service([Check("store", good), optional])
    async with client(app) as session:
        answer = await session.get("/ready")
        assert answer.status_code == 200
        assert answer.json()["checks"]["index"]["ok"] is False
        assert "refused by 192.0.2.1" in answer.json()["checks"]["index"]["detail"]
        app.state.readiness.drain()
        answer = await session.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    async with client(service([Check("store", bad)])) as session:
        assert (await session.get("/ready")).status_code == 503


async def hangs() -> str:
    await asyncio.sleep(60)
    return "never"


async def test_a_check_that_hangs_is_a_failure(monkeypatch):
    monkeypatch.setattr(health, "ANSWER_WITHIN_S", 0.01)
    report = await Readiness("test", [Check("slow", hangs)]).report()
    assert not report.ready
    assert report.body["checks"]["slow"]["detail"] == "no answer in 0.01 s"


async def test_what_is_ready_without_a_check_that_hangs_says_so_before_the_load_balancer_gives_up():
    template = (Path(__file__).parents[4] / "roles/gateway/templates/haproxy.cfg.j2").read_text()
    [waits] = re.findall(r"timeout check (\d+)s", template)
    start = time.monotonic()
    async with asyncio.timeout(int(waits)):
        report = await Readiness("test", [Check("aside", hangs, required=False)]).report()
    assert report.ready
    assert time.monotonic() - start < int(waits) - 0.2


async def test_a_check_that_has_passed_may_fail_for_its_grace_and_one_that_never_did_may_not():
    works = True

    async def probe() -> str:
        if not works:
            raise ConnectionError("away")
        return "there"

    readiness = Readiness("test", [Check("store", probe, grace_s=0.3)], max_age_s=0)
    works = False
    assert not (await readiness.report()).ready
    works = True
    assert (await readiness.report()).ready
    works = False
    graced = await readiness.report()
    assert (graced.ready, graced.body["checks"]["store"]["ok"]) == (True, False)
    await asyncio.sleep(0.35)
    assert not (await readiness.report()).ready
    works = True
    assert (await readiness.report()).ready


def test_logs_are_json_with_extras():
    record = logging.makeLogRecord(
        {"name": "n", "msg": "hello %s", "args": ("you",), "levelno": 20, "levelname": "INFO"}
    )
    record.status = 200
    entry = json.loads(JsonFormatter("svc").format(record))
    assert (entry["message"], entry["service"], entry["level"], entry["status"]) == ("hello you", "svc", "info", 200)


@pytest.fixture
def tenants(tmp_path):
    def write(*pairs: tuple[str, str]):
        path = tmp_path / "tenants.json"
        entries = [{"tenant": t, "key_sha256": hashlib.sha256(k.encode()).hexdigest()} for t, k in pairs]
        path.write_text(json.dumps(entries))
        return path

    return write


async def test_keys_and_their_reload(tenants):
    keys = TenantKeys(tenants(("lab", "one"), ("lab", "two"), ("other", "three")))

    async def who(request: Request) -> JSONResponse:
        return JSONResponse({"tenant": keys.authenticate(request).name})

    app = create_app("test", readiness=Readiness("test", []), routes=[Route("/who", who)])
    async with client(app) as session:

        async def ask(header: str | None) -> tuple[int, str]:
            answer = await session.get("/who", headers={"Authorization": header} if header else {})
            body = answer.json()
            return answer.status_code, body["tenant"] if answer.status_code == 200 else body["error"]["code"]

        assert await ask("Bearer two") == (200, "lab")
        assert await ask("bearer three") == (200, "other")
        assert await ask("Bearer nope") == (401, "invalid_api_key")
        assert await ask("Basic two") == (401, "missing_api_key")
        assert await ask(None) == (401, "missing_api_key")
        tenants(("fresh", "four"))
        keys._next_check = 0
        assert await ask("Bearer four") == (200, "fresh")
        assert await ask("Bearer two") == (401, "invalid_api_key")


def test_a_broken_tenants_file_keeps_the_former_keys(tenants, caplog):
    path = tenants(("lab", "one"))
    keys = TenantKeys(path)
    path.write_text("[{]")
    keys._next_check = 0
    assert keys.lookup("one") is not None
    assert "not JSON" in caplog.records[-1].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "a list"),
        ('[{"tenant": "a"}]', "exactly the keys"),
        ('[{"tenant": "a b", "key_sha256": "%s"}]' % ("0" * 64), "tenant must match"),
        ('[{"tenant": "a", "key_sha256": "XYZ"}]', "64 lower-case hex"),
    ],
)
def test_bad_tenants_files_are_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "tenants.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TenantKeys(path)
    assert str(path) in str(caught.value)
