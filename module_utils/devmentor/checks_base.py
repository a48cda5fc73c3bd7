"""What every check of verify is made of: a host's plan, the row that a check leaves, the recorder between them.

A check is a function that returns its evidence, raises `Failed` where the answer is wrong, and anything else where
there is no answer to judge: that is `unknown`, and unknown is never a pass. Runs on the hosts, on Python's standard
library alone, as all `checks*.py` do.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import subprocess
import time
from typing import Any, TypeVar

T = TypeVar("T")

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"


class Failed(Exception):
    """The service answered, and the answer is wrong. The message is the evidence."""


class Unanswered(Exception):
    """There is no answer that could be judged. The message says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of verify's table."""

    component: str
    host: str
    check: str
    result: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a host is asked, and with what.

    `peers`: group -> host -> address; `absent`: the same of hosts in `offline`. `secrets` never appear in
    evidence or in a command line; nothing but secrets belongs in there, because Ansible blanks every occurrence of
    their values in the result. `run` is the same on all hosts of one verify, so that a row written on the primary can
    be looked for on the replicas. `patience` is for what is slow, `slowest_scrape` (seconds) for a first scrape.
    """

    host: str
    address: str
    groups: tuple[str, ...]
    peers: c.Mapping[str, c.Mapping[str, str]]
    ports: c.Mapping[str, int]
    tls: c.Mapping[str, str]
    secrets: c.Mapping[str, str]
    run: str
    vip: str = ""
    cache_user: str = "qwen"
    engine_url: str = ""
    embedding_model: str = ""
    collection: str = "pbml"
    certificate_days: int = 14
    replicated_row: bool = True
    patience: float = 30.0
    slowest_scrape: float = 60.0  # the certificate probes' interval in roles/prometheus
    absent: c.Mapping[str, c.Mapping[str, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Recorder:
    """Collects the rows of one component; `facts` are what the control node compares between hosts."""

    plan: Plan
    component: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, name: str, function: c.Callable[[], str]) -> bool:
        """Run one check; whether it passed."""
        try:
            result, evidence = PASS, function()
        except Failed as error:
            result, evidence = FAIL, str(error)
        except ConnectionRefusedError:
            result, evidence = FAIL, "connection refused: nothing listens"
        except Unanswered as error:
            result, evidence = UNKNOWN, str(error)
        except Exception as error:
            result, evidence = UNKNOWN, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        for secret in self.plan.secrets.values():
            evidence = evidence.replace(secret, "***") if secret else evidence
        self.rows.append(Row(self.component, self.plan.host, name, result, " ".join(evidence.split())[:300]))
        return result == PASS


def poll(function: c.Callable[[], T], patience: float, pause: float = 1.0) -> T:
    """Ask again until it passes or patience (seconds) ends; then its last complaint stands."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return function()
        except (Failed, Unanswered, OSError, subprocess.SubprocessError):
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
