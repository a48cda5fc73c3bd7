"""The platform under test, as its hosts tell it: who holds the address, and whether every part is in service."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.host import Host
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.chaos.postgres.agents import TLS, port
from tests.chaos.postgres.cluster import Cluster
from tests.chaos.qwen.questions import DOCUMENTS
from tools import ask
from tools.inventory_vars import Inventory

ENGINE = "llamacpp@chat.service"
QWEN = "qwen.service"
# Unit -> group of the hosts that run it.
UNITS = {
    ENGINE: "qwen", QWEN: "qwen", "pbml.service": "pbml", "pbml-worker.service": "pbml",
    "valkey-server.service": "cache", "qdrant.service": "qdrant", "haproxy.service": "gateway",
}  # fmt: skip
# HAProxy's answer to `show stat`, by its runtime socket.
STAT = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect('/run/haproxy/admin.sock'); "
    "s.sendall(b'show stat\\n'); print(s.makefile().read())"
)
PROBE_S = 5


@dataclass
class Deployed:
    """A lab with the platform on it."""

    inventory: Path

    def __post_init__(self) -> None:
        self.lab = Lab(read_inventory(self.inventory), Silent())
        self.variables = Inventory(self.inventory)
        self.offline = set(self.variables.hosts("offline"))
        self.cluster = Cluster(self.inventory)
        self.client = ask.client_of(self.variables)

    def names(self, group: str) -> list[str]:
        """Hosts of a group that are meant to run."""
        return [name for name in self.variables.hosts(group) if name not in self.offline]

    def hosts(self, group: str) -> list[Host]:
        return [self.lab.host(name) for name in self.names(group)]

    @property
    def base_url(self) -> str:
        return f"https://{self.client.host}"

    def model(self) -> str:
        """The first chat model. Raises AskError."""
        return str(self.client.expect(200, "GET", "/v1/models").body["data"][0]["id"])

    def teach(self) -> None:
        """Ingest the documents that questions are about. Raises AskError."""
        for name, text in DOCUMENTS.items():
            ask.ingest(self.client, name, text)

    def address_holder(self) -> Host:
        """The gateway that has the virtual address. Raises LabError where that is not one."""
        command = ["ip", "-oneline", "address", "show", "to", f"{self.client.host}/32"]
        found = [host for host in self.hosts("gateway") if host.powered and inside(host, command).strip()]
        if len(found) != 1:
            names = ", ".join(host.name for host in found) or "no gateway"
            raise LabError(f"{names} has the address {self.client.host}", "lab exec HOST -- journalctl -u keepalived")
        return found[0]

    def settled(self) -> str:
        """Why the platform is not whole; empty where every part of it is in service."""
        running = {name for group in {*UNITS.values(), "postgres"} for name in self.names(group)}
        if off := sorted(name for name in running if not self.lab.host(name).powered):
            return f"without power: {', '.join(off)}"
        checks = [(host, unit) for unit, group in UNITS.items() for host in self.hosts(group)]
        with ThreadPoolExecutor(8) as pool:
            for why in pool.map(lambda pair: inactive(*pair), checks):
                if why:
                    return why
            parts = [(host, name) for name in ("qwen", "pbml") for host in self.hosts(name)]
            for why in pool.map(lambda pair: not_ready(*pair), parts):
                if why:
                    return why
            for why in pool.map(breaker_open, self.hosts("qwen")):
                if why:
                    return why
        if why := self.cluster.settled():
            return f"PostgreSQL: {why}"
        try:
            holder = self.address_holder()
        except LabError as error:
            return str(error)
        if out := sorted(set(self.names("qwen")) - in_service(inside(holder, ["python3", "-c", STAT]))):
            return f"{holder.name}'s gateway sends nothing to {', '.join(out)}"
        return ""


def inside(host: Host, command: list[str], seconds: int = PROBE_S) -> str:
    """A command's output inside a host; empty where it fails or does not end in time."""
    try:
        done = host.execute(["timeout", str(seconds), *command], check=False, timeout=seconds + 5)
    except (LabError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def inactive(host: Host, unit: str) -> str:
    state = inside(host, ["systemctl", "show", "--property", "ActiveState", "--value", unit]).strip()
    return "" if state == "active" else f"{host.name}: {unit} is {state or 'not known'}"


def fetch(host: Host, name: str, path: str) -> str:
    """A page of a service on its own host, with the platform's certificates; empty where its status is an error."""
    url = f"https://{host.address}:{port(name)}{path}"
    return inside(host, ["curl", "--silent", "--fail", "--max-time", str(PROBE_S - 1), *TLS.split(), url])


def not_ready(host: Host, name: str) -> str:
    return "" if fetch(host, name, "/ready") else f"{host.name}: {name} is not ready"


def breaker_open(host: Host) -> str:
    """Why an engine is left alone there; an instance that cannot be asked is not known to be well."""
    states = breaker_states(fetch(host, "qwen", "/metrics"))
    if not states:
        return f"{host.name}: QWEN's metrics have no breaker"
    return "" if not any(states) else f"{host.name}: a breaker is not closed"


def breaker_states(page: str) -> list[float]:
    """Of a page of metrics: 0 for each breaker that is closed."""
    lines = [line for line in page.splitlines() if line.startswith("devmentor_qwen_breaker_state")]
    return [float(line.rpartition(" ")[2]) for line in lines]


def servers(stat: str, backend: str = "qwen") -> dict[str, str]:
    """Server -> status of a backend in HAProxy's `show stat`, without the backend's own row."""
    lines = [line for line in stat.removeprefix("# ").splitlines() if line]
    if not lines:
        return {}
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:]]
    found = {row["svname"]: row.get("status", "") for row in rows if row.get("pxname") == backend}
    return {name: status for name, status in found.items() if name not in ("FRONTEND", "BACKEND")}


def in_service(stat: str, backend: str = "qwen") -> set[str]:
    """Servers of a backend that HAProxy's `show stat` calls UP; going down or coming up is not yet that."""
    return {name for name, status in servers(stat, backend).items() if status == "UP"}


def main_pid(host: Host, unit: str) -> int:
    """Process id, inside the host, of a unit's main process; 0 where it has none."""
    text = inside(host, ["systemctl", "show", "--property", "MainPID", "--value", unit]).strip()
    return int(text) if text.isdigit() else 0


def pid_on_machine(host: Host, unit: str) -> int:
    """Process id, on this machine, of a unit's main process. Raises LabError where it has none."""
    wanted = main_pid(host, unit)
    for pid in host.group.processes() if wanted else ():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
        if line.split()[-1:] == [str(wanted)]:
            return pid
    raise LabError(f"{host.name}: {unit} has no main process", f"lab exec {host.name} -- systemctl status {unit}")
