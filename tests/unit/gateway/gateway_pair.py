"""Two gateways on loopback, as the role renders them, before API instances.

A host is an address of 127/8. What is changed in the rendered file is where it listens (a host's address instead of
all) and what needs a host of its own (user, chroot, /run, the journal's socket); each change must find its line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from gateway_instance import Instance
from gateway_pki import Authority
from haproxy_debian import haproxy

from filter_plugins.gateway import tenant_map
from module_utils.devmentor.haproxy import Runtime

ROOT = Path(__file__).resolve().parents[3]
ROLES = ROOT / "roles"
KEYS = {"lab": "key-of-lab", "limited": "key-of-limited"}
GATEWAYS = ("gw1", "gw2")


def until(holds: Callable[[], Any], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Free on every loopback address at the time of asking."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("0.0.0.0", 0))
        return [each.getsockname()[1] for each in sockets]


def role_values(*files: str) -> dict[str, Any]:
    """Variables of roles, as their files say them, to be templated."""
    values: dict[str, Any] = {}
    for name in files:
        for path in sorted(ROLES.glob(name)):
            loaded = yaml.safe_load(path.read_text()) or {}
            values.update({key: _trusted(value) for key, value in loaded.items()})
    return values


def _trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _trusted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_trusted(each) for each in value]
    return trust_as_template(value) if isinstance(value, str) else value


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    """One HAProxy in master-worker mode, as systemd runs it."""

    name: str
    address: str
    port: int
    folder: Path
    ca: Path
    process: subprocess.Popen[bytes] | None = None
    log: list[str] = field(default_factory=list)

    @property
    def admin(self) -> Runtime:
        return Runtime(str(self.folder / "admin.sock"))

    @property
    def master(self) -> Runtime:
        return Runtime(str(self.folder / "master.sock"))

    @property
    def sockets(self) -> dict[str, str]:
        """Parameters of the module haproxy_server."""
        return {"socket": self.admin.path, "master_socket": self.master.path}

    def start(self) -> None:
        command = [haproxy(), "-W", "-S", self.master.path, "-f", str(self.folder / "haproxy.cfg")]
        output = (self.folder / "output").open("ab")
        self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        until(self.listens)

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "output").read_text()
        try:
            socket.create_connection((self.address, self.port), 1).close()
            return bool(self.admin("show version"))
        except Exception:
            return False

    def reload(self) -> None:
        """The steps of the unit's ExecReload."""
        assert self.process is not None
        before = self.worker()
        (self.folder / "server-state").write_text(self.admin("show servers state"))
        os.kill(self.process.pid, signal.SIGUSR2)
        until(lambda: self.listens() and self.worker() != before)

    def worker(self) -> str:
        """Pid of the worker that takes new connections."""
        lines = self.admin("show info").splitlines()
        return next(line for line in lines if line.startswith("Pid:"))

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def connection(self, timeout: float = 20) -> HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False
        return HTTPSConnection(self.address, self.port, timeout=timeout, context=context)

    def open(
        self, path: str, method: str = "GET", key: str = "key-of-lab", body: Any = None, **headers: str
    ) -> HTTPResponse:
        """An answer whose body is still to be read."""
        connection = self.connection()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers={"Authorization": f"Bearer {key}", **given})
        return connection.getresponse()

    def ask(self, path: str, method: str = "GET", key: str = "key-of-lab", body: Any = None, **headers: str) -> Answer:
        response = self.open(path, method, key, body, **headers)
        with contextlib.closing(response):
            content = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def deals(self, conversation: str) -> tuple[str, int]:
        """Host and port that a conversation is dealt to: where most of three requests go.

        One of them may go elsewhere: with the request before it not yet accounted, its instance is above its share.
        """
        answers = [self.ask("/v1/models", X_DevMentor_Conversation=conversation).json for _ in range(3)]
        return Counter((str(each["host"]), int(each["port"])) for each in answers).most_common(1)[0][0]

    def begin(self, path: str, **given: Any) -> Future[Answer]:
        """A request whose answer has begun, and is read by somebody while the test goes on."""
        response = self.open(path, **given)
        future: Future[Answer] = Future()

        def read() -> None:
            try:
                with contextlib.closing(response):
                    future.set_result(Answer(response.status, {}, response.read()))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return future

    def raw(self) -> ssl.SSLSocket:
        """A TLS connection on which the test writes HTTP itself."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False
        plain = socket.create_connection((self.address, self.port), 20)
        return context.wrap_socket(plain)

    def stat(self, server: str, field: str, backend: str = "qwen") -> str:
        header, *lines = self.admin("show stat").removeprefix("# ").splitlines()
        column = header.split(",").index(field)
        return next(line.split(",")[column] for line in lines if line.split(",")[:2] == [backend, server])

    def status(self, server: str, backend: str = "qwen") -> str:
        return self.stat(server, "status", backend)

    def requests(self) -> list[dict[str, Any]]:
        """What it logged of requests, oldest first."""
        lines = [line[line.index("{") :] for line in list(self.log) if '"request_id"' in line]
        return [json.loads(line) for line in lines]


class LogReceiver:
    """A syslog socket for one gateway."""

    def __init__(self, lines: list[str]) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.lines = lines
        threading.Thread(target=self.receive, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def receive(self) -> None:
        with contextlib.suppress(OSError):
            while datagram := self.socket.recv(1 << 16):
                self.lines.append(datagram.decode("utf-8", "replace"))


class Platform:
    """Gateways gw1 and gw2, QWEN and PBML on hosts h1 and h2 (each with room for a stand-in), standby host h3."""

    def __init__(self, folder: Path, **variables: Any) -> None:
        self.folder, self.variables = folder, variables
        self.pki = Authority(folder)
        names = ("gateway", "gateway_metrics", "gateway_peers", "qwen", "qwen_surge", "pbml", "pbml_surge")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.addresses = {"gw1": "127.0.1.1", "gw2": "127.0.1.2"}
        self.addresses |= {"h1": "127.0.2.1", "h2": "127.0.2.2", "h3": "127.0.2.3"}
        self.groups = {"gateway": ["gw1", "gw2"], "qwen": ["h1", "h2"], "qwen_standby": ["h3"], "pbml": ["h1", "h2"]}
        self.tls = {name: self.pki.issue(name) for name in self.addresses}
        self.instances = {
            (tier, host): Instance(host, self.addresses[host], self.ports[tier], self.tls[host])
            for tier in ("qwen", "qwen_surge", "pbml", "pbml_surge")
            for host in ("h1", "h2", "h3")
        }
        self.gateways: dict[str, Gateway] = {}
        self.receivers: list[LogReceiver] = []

    @property
    def qwen(self) -> dict[str, Instance]:
        return {host: self.instances["qwen", host] for host in self.groups["qwen"]}

    @property
    def pbml(self) -> dict[str, Instance]:
        return {host: self.instances["pbml", host] for host in self.groups["pbml"]}

    def start(self, gateways: tuple[str, ...] = ("gw1",)) -> None:
        for instance in (*self.qwen.values(), *self.pbml.values()):
            instance.start()
        for name in gateways:
            folder = self.folder / f"run-{name}"
            folder.mkdir()
            gateway = Gateway(name, self.addresses[name], self.ports["gateway"], folder, self.pki.path)
            self.receivers.append(LogReceiver(gateway.log))
            self.gateways[name] = gateway
            (folder / "tenants.map").write_text(tenant_map(KEYS, "key-of-admin"))
            self.configure(name)
            gateway.start()

    def stop(self) -> None:
        for gateway in self.gateways.values():
            gateway.stop()
        for instance in self.instances.values():
            instance.stop()
        for receiver in self.receivers:
            receiver.socket.close()

    def configure(self, name: str) -> None:
        """Writes the gateway's file, as the role would now, for its next start or reload."""
        gateway, index = self.gateways[name], list(self.gateways).index(name)
        text = adapted(self.render(name), self.addresses[name], gateway.folder, self.receivers[index].port)
        (gateway.folder / "haproxy.cfg").write_text(text)

    def render(self, name: str, template: str = "haproxy.cfg.j2") -> str:
        """The template as the role writes it on a host."""
        tls, run = self.tls[name], self.folder / f"run-{name}"
        values = {
            **role_values("platform/defaults/main/*.yml", "gateway/defaults/main.yml", "gateway/vars/main.yml"),
            "inventory_hostname": name,
            "groups": {**self.groups, "all": list(self.addresses)},
            "hostvars": {host: {"devmentor_address": address} for host, address in self.addresses.items()},
            "devmentor_ports": self.ports,
            "devmentor_tls_dir": str(tls),
            "devmentor_tls_ca": str(tls / "ca.crt"),
            "__gateway_state_file": str(run / "server-state"),
            "__gateway_tenants_file": str(run / "tenants.map"),
            **self.variables,
        }
        templar = Templar(loader=DataLoader(), variables=values)
        text = (ROLES / "gateway" / "templates" / template).read_text()
        return str(templar.template(trust_as_template(text)))


def adapted(text: str, address: str, run: Path, log_port: int) -> str:
    """A rendered configuration that runs here; see above."""
    changes = {
        "bind :": f"bind {address}:",
        "    log /dev/log local0 info\n": f"    log 127.0.0.1:{log_port} len 8192 local0 info\n",
        "    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n": "    nbthread 2\n",
        "/run/haproxy/admin.sock user root group haproxy": str(run / "admin.sock"),
    }
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the rendered file"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def running(folder: Path, gateways: tuple[str, ...] = ("gw1",), **variables: Any) -> Iterator[Platform]:
    """A platform whose instances are all up."""
    platform = Platform(folder, **variables)
    try:
        platform.start(gateways)
        for gateway in platform.gateways.values():
            for host in ("h1", "h2"):
                for tier in ("qwen", "pbml"):
                    until(lambda g=gateway, h=host, t=tier: g.status(h, t) == "UP")
        yield platform
    finally:
        platform.stop()
