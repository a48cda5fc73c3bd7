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
from devmentor.common.tls import client_context
from tests.unit.services.authority import Authority

SOURCES = Path(__file__).resolve().parents[4] / "services" / "src"

SERVICE = textwrap.dedent("""
    import asyncio
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from devmentor.common import logs, server
    from devmentor.common.health import Readiness
    from devmentor.common.settings import ServiceSettings, service_config
    from devmentor.common.web import create_app

    class Settings(ServiceSettings):
        model_config = service_config("T_")

    async def slow(_request):
        await asyncio.sleep(1.0)
        return PlainTextResponse("done")

    settings = Settings()
    logs.configure("t", settings.log_level)
    server.run(create_app("t", readiness=Readiness("t", []), routes=[Route("/slow", slow)]), settings)
""")


class Running:
    """The service's process and the socket that it reports to."""

    def __init__(self, tmp_path: Path, ca: Authority) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(tmp_path / "notify"))
        self.socket.settimeout(15)
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

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 15
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
    cert, key = ca.issue("renewed")
    running.cert.write_bytes(cert.read_bytes())
    running.key.write_bytes(key.read_bytes())
    running.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 5
    while serial() == before:
        assert time.monotonic() < deadline, "the old certificate is still served"
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
    from devmentor.common.tls import server_context

    context = server_context(*ca.issue("server"), ca.path)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
