"""The runner as systemd sees it: a real process, real certificates, a real notify socket."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from devmentor.common import notify
from devmentor.common.tls import client_context, server_context
from tests.unit.services.authority import Authority

SOURCES = Path(__file__).resolve().parents[4] / "services" / "src"

SERVICE = textwrap.dedent("""
    import asyncio
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from devmentor.common import logs, server, tls
    from devmentor.common.health import Readiness
    from devmentor.common.settings import ServiceSettings, service_config
    from devmentor.common.web import create_app

    class Settings(ServiceSettings):
        model_config = service_config("T_")

    async def slow(_request):
        await asyncio.sleep(1.0)
        return PlainTextResponse("done")

    async def call_out(request):
        port = int(request.query_params["port"])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=outgoing)
        writer.close()
        return PlainTextResponse("called")

    settings = Settings()
    outgoing = tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
    logs.configure("t", settings.log_level)
    routes = [Route("/slow", slow), Route("/call-out", call_out)]
    server.run(create_app("t", readiness=Readiness("t", []), routes=routes), settings)
""")


class Running:
    """The service's process and the socket that it reports to."""

    def __init__(self, tmp_path: Path, ca: Authority) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(tmp_path / "notify"))
        self.socket.settimeout(60)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.cert, self.key = ca.issue("server")
        environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCES),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "400000",
            "T_PORT": str(self.port),
            "T_TLS_CERT": str(self.cert),
            "T_TLS_KEY": str(self.key),
            "T_TLS_CA": str(ca.path),
            "T_DRAIN_DELAY_S": "0.5",
        }
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE], env=environment)
        self.url = f"https://127.0.0.1:{self.port}"

    def renew(self, ca: Authority) -> None:
        cert, key = ca.issue("renewed")
        self.cert.write_bytes(cert.read_bytes())
        self.key.write_bytes(key.read_bytes())
        self.process.send_signal(signal.SIGHUP)

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if line in self.socket.recv(4096).decode().split("\n"):
                return
        raise AssertionError(f"{line} did not come")


@pytest.fixture
def ca(tmp_path):
    return Authority(tmp_path, "ca")


@pytest.fixture
def running(tmp_path, ca):
    service = Running(tmp_path, ca)
    yield service
    service.process.kill()
    service.process.wait()
    service.socket.close()


async def test_lifecycle_under_systemd_and_mutual_tls(running, ca, tmp_path):
    running.wait_for("READY=1")
    running.wait_for("WATCHDOG=1")
    running.wait_for("WATCHDOG=1")
    trusted = client_context(ca.path, *ca.issue("client"))
    async with httpx.AsyncClient(verify=trusted, base_url=running.url) as session:
        assert (await session.get("/ready")).status_code == 200
        slow = asyncio.create_task(session.get("/slow"))
        await asyncio.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("STOPPING=1")
        # Draining: the listener still answers, and says that it leaves.
        async with httpx.AsyncClient(verify=trusted, base_url=running.url) as other:
            draining = await other.get("/ready")
        assert (draining.status_code, draining.json()["status"]) == (503, "draining")
        assert draining.headers["connection"] == "close", "clients leave before we close"
        assert (await slow).text == "done"
    assert running.process.wait(10) in (0, -signal.SIGTERM)


async def test_a_client_without_our_certificate_is_refused(running, ca, tmp_path):
    running.wait_for("READY=1")
    other_directory = tmp_path / "other"
    other_directory.mkdir()
    stranger = Authority(other_directory, "stranger").issue("client")
    for context in (client_context(ca.path), client_context(ca.path, *stranger)):
        async with httpx.AsyncClient(verify=context) as session:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
                await session.get(running.url + "/health")


async def test_sighup_takes_up_a_new_certificate(running, ca):
    def serial() -> str:
        context = client_context(ca.path, *ca.issue("client"))
        with (
            socket.create_connection(("127.0.0.1", running.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as channel,
        ):
            return str(x509.load_der_x509_certificate(channel.getpeercert(binary_form=True)).serial_number)

    running.wait_for("READY=1")
    before = serial()
    running.renew(ca)
    deadline = time.monotonic() + 5
    while serial() == before:
        assert time.monotonic() < deadline, "the old certificate is still served"
        await asyncio.sleep(0.05)


async def test_sighup_takes_up_a_new_certificate_for_calls_to_others(running, ca):
    shown: list[bytes] = []

    async def connected(_reader, writer):
        shown.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.close()

    running.wait_for("READY=1")
    trusted = client_context(ca.path, *ca.issue("client"))
    peer = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server_context(*ca.issue("peer"), ca.path))
    async with peer, httpx.AsyncClient(verify=trusted, base_url=running.url) as session:
        port = peer.sockets[0].getsockname()[1]

        async def call_out() -> bytes:
            assert (await session.get(f"/call-out?port={port}")).text == "called"
            return shown[-1]

        before = await call_out()
        running.renew(ca)
        deadline = time.monotonic() + 5
        while await call_out() == before:
            assert time.monotonic() < deadline, "the old certificate is still shown"
            await asyncio.sleep(0.05)


def test_without_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.notify("READY=1") is False


def test_watchdog_of_another_process_is_not_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert notify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval_s() == 15


def test_server_context_demands_a_client_certificate(ca):
    context = server_context(*ca.issue("server"), ca.path)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
