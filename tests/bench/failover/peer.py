"""The peer as a target of rounds: Patroni with etcd, HAProxy in front of it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.chaos.postgres.cluster import DATABASE, View, leader_of, save_journal, sql, views, wait_until, whole
from tests.chaos.postgres.faults import Scene
from tools.inventory_vars import Inventory
from tools.runs import ROOT, lab, playbook_file

INVENTORY = Path(__file__).with_name("inventory")
PLAYBOOK = Path(__file__).with_name("peer.yml")
START_SECONDS = 120.0
# Patroni's defaults; and its floor for ttl, with the loop and the retries that fit twice into it.
SETTINGS = {
    "default": {"ttl": 30, "loop_wait": 10, "retry_timeout": 10},
    "tight": {"ttl": 20, "loop_wait": 5, "retry_timeout": 5},
}
API, PROXY = 8008, 5000


@dataclass
class Patroni:
    """A Target of `rounds.play`. Its followers' quorum is Patroni's own: synchronous_mode quorum, strict."""

    inventory: Path = INVENTORY
    nodes: list[str] = field(default_factory=list)
    proxies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lab = Lab(read_inventory(self.inventory), Silent())
        variables = Inventory(self.inventory)
        self.nodes, self.proxies = variables.hosts("patroni"), variables.hosts("proxy")
        self._addresses = {self.lab.host(node).address: node for node in self.nodes}

    def views(self) -> dict[str, View]:
        return views(self.lab, self.nodes)

    def settled(self) -> str:
        """As `whole`, and Patroni counts every follower into its quorum."""
        seen = self.views()
        if why := whole(seen, self.nodes):
            return why
        try:
            members = self.ask(leader_of(seen), "cluster")["members"]
        except LabError as error:
            return str(error)
        states = {member["name"]: (member["role"], member["state"]) for member in members}
        wanted = {"leader": "running"} | dict.fromkeys(("quorum_standby", "sync_standby"), "streaming")
        odd = [f"{name} is {role}, {state}" for name, (role, state) in states.items() if wanted.get(role) != state]
        missing = sorted(set(self.nodes) - set(states))
        return "; ".join([*odd, *(f"{name} is no member" for name in missing)])

    def clients(self, run: str) -> list[dict[str, Any]]:
        """As many writers as the platform's own, through the proxy."""
        connect = {"host": self.lab.host(self.proxies[0]).address, "port": PROXY, "user": "pbml", "dbname": DATABASE}
        return [{"kind": "writer", "name": f"w{number}", "connect": connect} for number in range(4)]

    def socket(self) -> str:
        return "/var/run/postgresql"

    def server_name(self, address: str) -> str:
        return self._addresses.get(address, address)

    def evidence(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in [*self.nodes, *self.proxies]:
            save_journal(self.lab.host(name), folder)

    def ask(self, node: str, path: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
        """An answer of a node's Patroni; PATCH where there is a change. Raises LabError."""
        url = f"http://{self.lab.host(node).address}:{API}/{path}"
        body = None if change is None else json.dumps(change).encode()
        request = urllib.request.Request(url, body, method="GET" if change is None else "PATCH")
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError, urllib.error.HTTPError) as error:
            raise LabError(f"{node}: Patroni does not answer {path}: {error}", "journalctl -u patroni") from error

    def tune(self, setting: str) -> None:
        """Have one of SETTINGS in force."""
        self.ask(leader_of(self.views()), "config", SETTINGS[setting])

    def switch(self, scene: Scene) -> None:
        """A planned change of the leader, as an operator asks for it."""
        command = ["patronictl", "-c", "/etc/patroni/config.yml", "switchover", "bench", "--force"]
        chosen = ["--leader", scene.leader, "--candidate", scene.followers[0]]
        scene.host(scene.followers[0]).execute([*command, *chosen], timeout=60)


def deploy() -> Patroni:
    """Fresh hosts with Patroni running, and the database that clients use."""
    lab(INVENTORY, "down").require()
    lab(INVENTORY, "up", show=True).require()
    playbook_file(PLAYBOOK, INVENTORY).require()
    peer = Patroni()
    _, why = wait_until(lambda: whole(peer.views(), peer.nodes), START_SECONDS)
    if why:
        raise LabError(f"Patroni's cluster is not whole after {START_SECONDS:.0f} s: {why}", "journalctl -u patroni")
    host = peer.lab.host(leader_of(peer.views()))
    for database, script in (
        ("postgres", f"CREATE ROLE pbml LOGIN; CREATE DATABASE {DATABASE} OWNER pbml;"),
        (DATABASE, "CREATE SCHEMA pbml AUTHORIZATION pbml;"),
    ):
        for statement in filter(None, (part.strip() for part in script.split(";"))):
            if sql(host, f"{statement};", database, seconds=20) is None:
                raise LabError(f"{host.name}: `{statement}` failed", f"see {ROOT / 'docs' / 'lab.md'}, verb exec")
    return peer
