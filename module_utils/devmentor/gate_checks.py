"""The checks of a health gate that need one answer: http, tcp, sql, promql and systemd.

Each takes the host's plan, its options, what its last probe left (`memory`, which it may change) and its limit in
seconds. It returns evidence, raises `Failed` for a wrong answer and anything else for none, as verify's checks do.
"""

from __future__ import annotations

import collections.abc as c
import math
import operator
import re
import socket
import subprocess
import time
import urllib.parse
from typing import Any

from .checks_base import Failed, Plan, Unanswered
from .checks_client import EXCERPT, Answer, fetch, run_command

Options = c.Mapping[str, Any]
Memory = dict[str, Any]

BODY_LIMIT = 1 << 20  # bytes that are read of an answer
FIELD = "\x1f"

_COMPARE: dict[str, c.Callable[[float, float], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}
_UNIT_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "ActiveEnterTimestampMonotonic",
    "NRestarts",
    "InvocationID",
)


def secret(plan: Plan, name: str) -> str:
    """An entry of the secrets. Raises Unanswered where it is missing or empty."""
    value = plan.secrets.get(name, "")
    if not value:
        raise Unanswered(f"secrets has no '{name}'")
    if not value.isprintable():
        # Complaints about it would quote it escaped, where no mask finds it.
        raise Unanswered(f"'{name}' in secrets has a line break or another character that is not printable")
    return value


def _milliseconds(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"


def check_http(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    headers = {**options["headers"], **{k: secret(plan, v) for k, v in options["headers_from"].items()}}
    if options["bearer_from"]:
        headers["Authorization"] = f"Bearer {secret(plan, options['bearer_from'])}"
    payload = options["body"].encode() if options["body"] else None
    began = time.monotonic()
    answer = fetch(plan.tls, options["method"], options["url"], payload, headers, limit, BODY_LIMIT)
    return judge_answer(answer, options["status"], options["contains"]) + f" in {_milliseconds(began)}"


def judge_answer(answer: Answer, status: c.Sequence[int], contains: str) -> str:
    """An answer whose status is wanted and whose body has the text."""
    text = answer.body.decode(errors="replace")
    if answer.status not in status:
        raise Failed(f"HTTP {answer.status}, wanted {', '.join(map(str, status))}: {answer.excerpt()}")
    if contains not in text:
        raise Failed(f"HTTP {answer.status}, and {contains!r} is not in the answer: {answer.excerpt()}")
    return f"HTTP {answer.status}"


def check_tcp(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    began = time.monotonic()
    with socket.create_connection((options["host"], options["port"]), timeout=limit):
        return f"connected in {_milliseconds(began)}"


def check_sql(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    """The query in a transaction that can only read, unless asked otherwise; a query that fails is unknown."""
    command = ["psql", "-XAtq", "-F", FIELD, "-v", "ON_ERROR_STOP=1"]
    env = {"PGDATABASE": options["database"], "PGPORT": str(options["port"]), "PGUSER": options["user"]}
    env["PGCONNECT_TIMEOUT"] = str(max(math.ceil(limit), 2))
    if options["host"]:
        env |= {"PGHOST": options["host"], "PGSSLMODE": options["sslmode"]}
        if options["sslmode"].startswith("verify") and plan.tls.get("ca"):
            env["PGSSLROOTCERT"] = plan.tls["ca"]
        if options["sslmode"] != "disable" and plan.tls.get("cert"):
            env |= {"PGSSLCERT": plan.tls["cert"], "PGSSLKEY": plan.tls["key"]}
        if options["password_from"]:
            env["PGPASSWORD"] = secret(plan, options["password_from"])
    else:
        command = ["runuser", "-u", options["user"], "--", *command]
    statements = [options["query"]]
    if options["read_only"]:
        statements = ["begin transaction read only", f"set local statement_timeout = {math.ceil(limit * 1000)}"]
        statements += [options["query"], "rollback"]
    for statement in statements:
        command += ["-c", statement]
    first = run_command(command, env=env, timeout=limit).split("\n", 1)[0].split(FIELD, 1)[0]
    return judge_field(first, options["expect"], options["expect_regex"])


def judge_field(value: str, expect: str | None, regex: str | None) -> str:
    """The first field of the first row; no row reads as an empty field."""
    good = value == expect if expect is not None else re.search(regex or "", value) is not None
    wanted = repr(expect) if expect is not None else f"a match of {regex}"
    if not good:
        raise Failed(f"answered {value[:EXCERPT]!r}, wanted {wanted}")
    return f"answered {value[:EXCERPT]!r}"


def check_promql(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    url = f"{options['url'].rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': options['query']})}"
    answer = fetch(plan.tls, "GET", url, timeout=limit)
    if answer.status != 200:
        # Also a query that cannot be evaluated: it says nothing about what it asks for.
        raise Unanswered(f"HTTP {answer.status}: {answer.excerpt()}")
    return judge_samples(read_samples(answer.json()), options["op"], options["value"])


def read_samples(body: Any) -> list[tuple[str, float]]:
    """(labels, value) of an instant query's vector or scalar. Raises Unanswered for anything else."""
    try:
        data = body["data"]
        if body["status"] != "success":
            raise Unanswered(f"answered {body['status']}")
        if data["resultType"] == "scalar":
            return [("scalar", float(data["result"][1]))]
        if data["resultType"] == "vector":
            return [(_labels(sample["metric"]), float(sample["value"][1])) for sample in data["result"]]
        raise Unanswered(f"the query gives a {data['resultType']}, not a vector or a scalar")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unanswered(f"the answer cannot be read ({error!r})") from error


def _labels(metric: c.Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in sorted(metric.items())) + "}"


def judge_samples(samples: list[tuple[str, float]], op: str, value: float | None) -> str:
    """Every sample satisfies `op value`; no sample and not-a-number say nothing."""
    if op in ("empty", "not_empty"):
        if bool(samples) == (op == "empty"):
            shown = ", ".join(f"{labels} {sample:g}" for labels, sample in samples[:3])
            raise Failed(f"{len(samples)} samples: {shown}" if samples else "no samples")
        return f"{len(samples)} samples"
    if not samples:
        raise Unanswered("the query has no samples")
    if lost := [labels for labels, sample in samples if math.isnan(sample)]:
        raise Unanswered(f"{len(lost)} of {len(samples)} samples are not a number: {lost[0]}")
    assert value is not None  # gate_parse sees to it
    bad = [(labels, sample) for labels, sample in samples if not _COMPARE[op](sample, value)]
    if bad:
        shown = ", ".join(f"{labels} {sample:g}" for labels, sample in bad[:3])
        raise Failed(f"{len(bad)} of {len(samples)} samples are not {op} {value:g}: {shown}")
    low, high = min(sample for _, sample in samples), max(sample for _, sample in samples)
    return f"{len(samples)} samples {op} {value:g}: {low:g}" + (f" to {high:g}" if high != low else "")


def check_systemd(plan: Plan, options: Options, memory: Memory, limit: float) -> str:
    command = ["systemctl", "show", f"--property={','.join(_UNIT_PROPERTIES)}", options["unit"]]
    try:
        text = run_command(command, timeout=limit)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unanswered(f"systemctl cannot be asked: {error}") from error
    unit = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    # What the gate saw of it first; of an invocation, the first that was active.
    memory.setdefault("NRestarts", unit.get("NRestarts", ""))
    if unit.get("ActiveState") == "active":
        memory.setdefault("InvocationID", unit.get("InvocationID", ""))
    return judge_unit(unit, options["active"], options["min_uptime_seconds"], memory, time.monotonic())


def judge_unit(
    unit: c.Mapping[str, str], active: bool, min_uptime: float, before: c.Mapping[str, str], now: float
) -> str:
    """A unit as `systemctl show` has it. before: the same at the gate's start; now: seconds of the monotonic clock."""
    state = unit.get("ActiveState")
    if not state or not unit.get("LoadState"):
        raise Unanswered("systemctl told no state")
    evidence = f"{state} ({unit.get('SubState', '?')})"
    if unit["LoadState"] != "loaded":
        raise Failed(f"the unit is {unit['LoadState']}")
    if (state == "active") != active:
        raise Failed(f"is {evidence}, wanted {'active' if active else 'not active'}")
    if not active:
        return evidence
    if unit.get("NRestarts", "") != before["NRestarts"]:
        raise Failed(f"was restarted meanwhile: NRestarts {before['NRestarts'] or '0'} to {unit.get('NRestarts', '?')}")
    if unit.get("InvocationID", "") != before.get("InvocationID"):
        raise Failed("was started anew meanwhile: its InvocationID changed")
    try:
        uptime = now - int(unit["ActiveEnterTimestampMonotonic"]) / 1e6
    except (KeyError, ValueError):
        if min_uptime:
            raise Unanswered("systemctl told no start time") from None
        return evidence
    if uptime < min_uptime:
        raise Failed(f"{evidence} for {uptime:.1f} s, {min_uptime:g} s are needed")
    return f"{evidence} for {uptime:.0f} s, not restarted meanwhile"
