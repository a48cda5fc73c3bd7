"""The platform under test: where PBML is, what its ledger and its index hold, asked inside the hosts."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.host import Host
from tests.chaos.pbml.attempts import Row
from tests.chaos.pbml.replicas import Replicas
from tests.chaos.postgres.agents import port
from tests.chaos.postgres.cluster import Cluster, leader_of, sql
from tools.inventory_vars import Inventory
from tools.runs import ROOT

COLLECTION = yaml.safe_load((ROOT / "roles" / "pbml" / "defaults" / "main.yml").read_text())["pbml_collection"]
_TLS = "/etc/devmentor/tls"
_PENDING = "('received', 'embedded', 'indexed')"


@dataclass(frozen=True, slots=True)
class TimeToLive:
    """Of a version: bytes, when it was acknowledged (Unix time), and seconds from then until it was live."""

    size: int
    received: float
    seconds: float


@dataclass
class Platform:
    """A deployed lab with all tiers."""

    inventory: Path

    def __post_init__(self) -> None:
        self.variables = Inventory(self.inventory)
        self.cluster = Cluster(self.inventory)
        self.lab = self.cluster.lab
        self.hosts = self.variables.hosts("pbml")
        self.qdrant = self.variables.hosts("qdrant")
        self.replicas = Replicas({name: self.lab.host(name) for name in self.hosts}, self.key)

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    @property
    def url(self) -> str:
        """The gateway's: it hands each request to one of the replicas."""
        return f"https://{self.variables.value(self.hosts[0], 'devmentor_vip')}"

    @property
    def key(self) -> str:
        return str(next(iter(self.variables.value(self.hosts[0], "vault_api_keys").values())))

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=str(self.variables.value(self.hosts[0], "vault_ca_cert")))

    def leader(self) -> str:
        """PostgreSQL's; empty where nobody, or more than one, leads."""
        return leader_of(self.cluster.views())

    def sql(self, script: str, seconds: int = 30) -> list[str] | None:
        """The leader's answer; None where there is none."""
        leader = self.leader()
        return sql(self.host(leader), f"SET search_path = pbml;\n{script}", seconds=seconds) if leader else None

    def newest(self) -> int | None:
        """The highest seq in the ledger."""
        lines = self.sql("SELECT coalesce(max(seq), 0) FROM versions;")
        return int(lines[-1]) if lines else None

    def waiting(self, up_to: int) -> int | None:
        """Versions up to a seq that are not live yet."""
        lines = self.sql(f"SELECT count(*) FROM versions WHERE status IN {_PENDING} AND seq <= {up_to};")
        return int(lines[-1]) if lines else None

    def unfinished(self) -> int | None:
        """All versions that are not live yet, which writers look at while they write."""
        lines = self.sql(f"SELECT count(*) FROM versions WHERE status IN {_PENDING};", seconds=5)
        return int(lines[-1]) if lines else None

    def times_to_live(self, run: str) -> list[TimeToLive] | None:
        """Of the round's versions that were ever live."""
        lines = self.sql(
            "SELECT json_build_array(content_bytes, extract(epoch FROM received_at),"
            " extract(epoch FROM live_at - received_at)) FROM versions WHERE live_at IS NOT NULL AND kind <> 'deletion'"
            f" AND (starts_with(document_id, '{run}-') OR starts_with(conversation_id, '{run}-'));",
            60,
        )
        return None if lines is None else [TimeToLive(*json.loads(line)) for line in lines if line.startswith("[")]

    def rows(self, run: str) -> list[Row] | None:
        """The ledger's rows of a round."""
        lines = self.sql(
            "SELECT json_build_array(v.seq, v.document_id, coalesce(v.conversation_id, ''), v.version, v.kind,"
            " v.status,"
            " coalesce(md5(v.content), ''), d.live_version = v.version AND d.deleted_version < v.version)"
            " FROM versions v JOIN documents d USING (tenant, document_id)"
            f" WHERE starts_with(v.document_id, '{run}-') OR starts_with(v.conversation_id, '{run}-');",
            60,
        )
        return None if lines is None else [Row(*json.loads(line)) for line in lines if line.startswith("[")]

    def index_differs(self) -> str:
        """Why Qdrant does not hold one point for each live chunk; empty where it does."""
        lines = self.sql(
            "SELECT count(*) FROM chunks c JOIN documents d USING (tenant, document_id)"
            " WHERE d.live_version = c.version AND d.deleted_version < c.version;"
        )
        if not lines:
            return "the ledger cannot be read"
        points = self.points()
        return "" if points == int(lines[-1]) else f"{points} points in Qdrant, {lines[-1]} live chunks in the ledger"

    def points(self) -> int | None:
        """Exact, of the whole collection; None where no peer can be asked."""
        answer = self.qdrant_call("POST", "/points/count", {"exact": True})
        return int(answer["result"]["count"]) if answer and answer.get("status") == "ok" else None

    def qdrant_call(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """Of PBML's collection, through the first peer that answers."""
        for name in self.qdrant:
            host = self.host(name)
            if not host.powered:
                continue
            lines = [
                f'url = "https://{host.address}:{port("qdrant_http")}/collections/{COLLECTION}{path}"',
                f'header = "api-key: {self.variables.value(name, "vault_qdrant_api_key")}"',
                'header = "Content-Type: application/json"',
                f'request = "{method}"',
                f'cacert = "{_TLS}/ca.crt"',
            ]
            if body is not None:
                lines.append(f"data = {json.dumps(json.dumps(body))}")
            command = ["curl", "--silent", "--max-time", "10", "--config", "-"]
            done = host.execute(command, stdin="\n".join(lines), check=False)
            if done.returncode == 0 and done.stdout.startswith("{"):
                answer: dict[str, Any] = json.loads(done.stdout)
                return answer
        return None
