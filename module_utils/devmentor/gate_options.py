"""What a health gate can be asked: the types of checks with their options, and the timing."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import math
from typing import Any

CANARIES = (
    "qwen",
    "pbml",
    "engine",
    "embeddings",
    "qdrant",
    "postgres",
    "pgbouncer",
    "cache",
    "gateway",
    "prometheus",
    "alertmanager",
    "exporters",
)
OPERATORS = ("lt", "le", "gt", "ge", "eq", "ne", "empty", "not_empty")
CANARY_TIMEOUT_SECONDS = 30.0
"""Least time of a canary that names none of its own: a document is ingested, indexed and found in it."""


class GateError(Exception):
    """A gate that cannot be asked as written; the message names check, option and remedy."""


@dataclasses.dataclass(frozen=True)
class Option:
    """kind: str, int, float, bool, list (of int), strings (a list of str), dict or url. None: left out."""

    kind: str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()


# Type -> its options. What ends in `_from` names an entry of the module's `secrets`.
TYPES: dict[str, dict[str, Option]] = {
    "http": {
        "url": Option("url", required=True),
        "status": Option("list", [200]),
        "contains": Option("str", ""),
        "method": Option("str", "GET"),
        "body": Option("str", ""),
        "headers": Option("dict", {}),
        "headers_from": Option("dict", {}),
        "bearer_from": Option("str", ""),
    },
    "tcp": {"host": Option("str", required=True), "port": Option("int", required=True)},
    "sql": {
        "host": Option("str", ""),
        "port": Option("int", 5432),
        "database": Option("str", "postgres"),
        "user": Option("str", "postgres"),
        "query": Option("str", required=True),
        "expect": Option("str"),
        "expect_regex": Option("str"),
        "password_from": Option("str", ""),
        "sslmode": Option("str", "verify-full", choices=("disable", "require", "verify-ca", "verify-full")),
        "read_only": Option("bool", True),
    },
    "promql": {
        "url": Option("url", required=True),
        "query": Option("str", required=True),
        "op": Option("str", required=True, choices=OPERATORS),
        "value": Option("float"),
    },
    "systemd": {
        "unit": Option("str", required=True),
        "active": Option("bool", True),
        "min_uptime_seconds": Option("float", 0.0),
    },
    "qdrant": {
        "url": Option("url", required=True),
        "expected_peers": Option("int", required=True),
        "points_equal": Option("bool", False),
        "absent": Option("strings", []),
        "api_key_from": Option("str", "qdrant_api_key"),
    },
    "postgres": {
        "role": Option("str", required=True, choices=("primary", "replica")),
        "max_lag_bytes": Option("int", 16 * 1024 * 1024),
        "streaming": Option("bool", True),
        "replicas": Option("strings"),
        "port": Option("int"),
    },
    "canary": {"of": Option("str", required=True, choices=CANARIES), "base": Option("url", "")},
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One check as asked. timeout_seconds: its own, or None for the gate's."""

    name: str
    type: str
    options: c.Mapping[str, Any]
    timeout_seconds: float | None = None

    def limit(self, timing: Timing) -> float:
        """Seconds that one probe of it may take."""
        if self.timeout_seconds is not None:
            return self.timeout_seconds
        return max(timing.timeout_seconds, CANARY_TIMEOUT_SECONDS) if self.type == "canary" else timing.timeout_seconds

    def secret_names(self) -> list[str]:
        """The entries of `secrets` that it refers to."""
        names = [value for key, value in self.options.items() if key.endswith("_from") and isinstance(value, str)]
        return [name for name in [*names, *self.options.get("headers_from", {}).values()] if name]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Kubernetes' terms; a round is one probe of every check. failure_threshold 0: only the deadline ends it."""

    initial_delay_seconds: float = 0.0
    period_seconds: float = 5.0
    timeout_seconds: float = 5.0
    success_threshold: int = 1
    failure_threshold: int = 3
    deadline_seconds: float = 120.0

    def __post_init__(self) -> None:
        least: dict[str, float] = {"initial_delay_seconds": 0, "success_threshold": 1, "failure_threshold": 0}
        for field in dataclasses.fields(self):
            value, floor = getattr(self, field.name), least.get(field.name)
            if not math.isfinite(value) or (floor is None and value <= 0) or (floor is not None and value < floor):
                wanted = "more than 0" if floor is None else f"{floor:g} or more"
                raise GateError(f"{field.name}: is {value:g}. Remedy: {wanted}.")
        if self.initial_delay_seconds >= self.deadline_seconds:
            raise GateError(
                f"deadline_seconds: is {self.deadline_seconds:g}, and the first probe is after "
                f"{self.initial_delay_seconds:g} s. Remedy: more than initial_delay_seconds."
            )


# The same as arguments of the module.
TIMING_SPEC: dict[str, dict[str, Any]] = {
    field.name: {"type": "int" if field.name.endswith("_threshold") else "float", "default": field.default}
    for field in dataclasses.fields(Timing)
}


def needs_plan(checks: c.Sequence[Check], secrets: c.Collection[str], tls: c.Collection[str]) -> bool:
    """Whether a check takes something from the host's plan: a secret, a port, peers, or the certificate for TLS."""

    def speaks_tls(options: c.Mapping[str, Any]) -> bool:
        url = str(options.get("url", "")).startswith("https:")
        return url or bool(options.get("host") and options.get("sslmode", "disable") != "disable")

    return any(
        check.type in ("canary", "postgres")
        or any(name not in secrets for name in check.secret_names())
        or (not tls and speaks_tls(check.options))
        for check in checks
    )
