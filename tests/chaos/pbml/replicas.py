"""PBML of one host, asked by curl inside it: the firewall lets nobody else in, and the host has the certificate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from lab.errors import LabError
from lab.host import Host
from tests.chaos.postgres.agents import TLS, port

API, WORKER = "pbml", "pbml_worker"
"""Names of ports."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 where none came."""

    status: int
    text: str

    @property
    def json(self) -> dict[str, Any]:
        """Empty where the answer is not a JSON object."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Digest:
    """What a replica says of its state, and when it last had all that PostgreSQL had."""

    digest: str
    documents: int
    synced_at: datetime


@dataclass(frozen=True)
class Replicas:
    """The PBML hosts by name; `key` is a tenant's."""

    hosts: Mapping[str, Host]
    key: str

    def call(
        self,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        service: str = API,
        seconds: int = 15,
    ) -> Answer:
        """Of one host. Raises nothing: what went wrong is in an answer with status 0."""
        host = self.hosts[name]
        words = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})}
        lines = [f'url = "https://{host.address}:{port(service)}{path}"', f'request = "{method}"']
        lines += [f'header = "{word}: {value}"' for word, value in words.items()]
        if body is not None:
            lines.append(f"data = {json.dumps(json.dumps(body))}")
        command = ["curl", "--silent", "--show-error", "--max-time", str(seconds), *TLS.split()]
        command += ["--write-out", "\n%{http_code}", "--config", "-"]
        try:
            done = host.execute(command, stdin="\n".join(lines), check=False, timeout=seconds + 5)
        except (LabError, subprocess.TimeoutExpired) as error:
            return Answer(0, f"{name}: {error}")
        if done.returncode:
            return Answer(0, f"{name}: {done.stderr.strip()}")
        text, _, status = done.stdout.rpartition("\n")
        return Answer(int(status), text)

    def metrics(self, name: str, service: str = API) -> Samples | None:
        """(name, labels) -> value of a process; None where it gives none."""
        answer = self.call(name, "GET", "/metrics", service=service)
        return samples(answer.text) if answer.status == 200 else None

    def spooled(self) -> str:
        """Why the spools are not empty yet; empty where all are."""
        for name in self.hosts:
            found = self.metrics(name)
            if found is None:
                return f"{name} does not say what is in its spool"
            for metric in ("pbml_spool_entries", "pbml_spool_parked_entries"):
                if count := value(found, metric):
                    return f"{name}: {metric} is {count:.0f}"
        return ""

    def digests(self) -> dict[str, Digest | None]:
        """By host; None where one gives none."""
        return {name: self._digest(name) for name in self.hosts}

    def _digest(self, name: str) -> Digest | None:
        found = self.call(name, "GET", "/v1/digest")
        if found.status != 200:
            return None
        said = found.json
        return Digest(str(said["digest"]), int(said["documents"]), datetime.fromisoformat(said["synced_at"]))


def samples(text: str) -> Samples:
    """What a /metrics page says."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(found: Samples, metric: str, **labels: str) -> float:
    """Of one sample; 0 where there is none."""
    return found.get((metric, frozenset(labels.items())), 0.0)


def differ(digests: Mapping[str, Digest | None], since: datetime) -> str:
    """Why the replicas are not known to have the same: all that was there at `since`, and nothing else."""
    for name, said in digests.items():
        if said is None:
            return f"{name} gives no digest"
        if said.synced_at < since:
            return f"{name} is as of {said.synced_at:%H:%M:%S}"
    if len({(said.digest, said.documents) for said in digests.values() if said is not None}) > 1:
        shown = {name: f"{said.digest[:12]} ({said.documents})" for name, said in digests.items() if said is not None}
        return f"digests differ: {shown}"
    return ""
