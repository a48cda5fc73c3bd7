"""What a task's result says of versions, gates, drains, the journal and the baseline: known keys, nothing else.

A result speaks by the key `report`, one dict or a list of them, each with a `kind`:

    {kind: version, component, before, after}
    {kind: gate, name, passed, waited_s, checks: [{name, type, result, evidence}],
     timeline: [{at, name, result, evidence}]}
    {kind: journal, tier, host, phase, before, after, evidence}
    {kind: baseline, action, tier, result, evidence, numbers: {name: number}}

or because its module is one of `_READERS`. Of a result under no_log nothing is read. docs/reports.md describes this
contract for operators; a change of a key is a change of the schema's version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .run_report_text import clip

Entry = dict[str, Any]
Result = Mapping[str, Any]

MOST_CHECKS = 60
MOST_TIMELINE = 40
MOST_NUMBERS = 24


def censored(result: Result) -> bool:
    return bool(result.get("_ansible_no_log")) or "censored" in result


def entries(module: str, result: Result, task: str) -> Iterator[Entry]:
    """Entries of a result and of its loop's items, each with its `kind`. module: name without its collection."""
    if censored(result):
        return
    reader = _READERS.get(module)
    facts = _get(result, "ansible_facts", "ansible_local", "devmentor", "versions")
    if isinstance(facts, Mapping):
        for name, value in facts.items():
            if isinstance(value, str):
                yield {**_version(name, "", value), "kind": "installed"}
    if reader is None and "report" not in result and "results" not in result:
        return
    items = result.get("results")
    for answer in [result, *(items if isinstance(items, list) else [])]:
        if not isinstance(answer, Mapping) or censored(answer):
            continue
        if reader is not None:
            yield from reader(answer, task)
        yield from _reported(answer, task)


def _reported(result: Result, task: str) -> Iterator[Entry]:
    given = result.get("report")
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, Mapping):
            continue
        kind = entry.get("kind")
        if kind == "version" and entry.get("component"):
            yield _version(entry["component"], entry.get("before", ""), entry.get("after", ""))
        elif kind == "gate":
            yield from _gate(entry, str(entry.get("name") or task))
        elif kind == "journal":
            yield _step(entry)
        elif kind == "baseline":
            yield _baseline(entry, entry)


def _get(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _argument(result: Result, name: str) -> str:
    return clip(_get(result, "invocation", "module_args", name) or "", 80)


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _version(component: object, before: object, after: object) -> Entry:
    return {
        "kind": "version",
        "component": clip(component, 80),
        "before": clip(before or "", 80),
        "after": clip(after or "", 80),
    }


def _gate(result: Result, task: str) -> Iterator[Entry]:
    if not isinstance(result.get("passed"), bool):
        return
    checks, timeline = result.get("checks"), result.get("timeline")
    yield {
        "kind": "gate",
        "name": clip(task, 160),
        "passed": result["passed"],
        "waited_s": _number(result.get("waited_s")),
        "checks": _rows(checks, ("name", "type", "result", "evidence"))[:MOST_CHECKS],
        "timeline": _rows(timeline, ("at", "name", "result", "evidence"))[-MOST_TIMELINE:],
    }


def _rows(rows: Any, keys: tuple[str, ...]) -> list[Entry]:
    return [
        {key: row[key] if _number(row.get(key)) is not None else clip(row.get(key, "")) for key in keys}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping)
    ]


def _step(step: Result) -> Entry:
    return {"kind": "journal", **{key: clip(step.get(key) or "", 160) for key in ("tier", "host", "phase")}} | {
        key: clip(step.get(key) or "") for key in ("before", "after", "evidence")
    }


def _journal(result: Result, task: str) -> Iterator[Entry]:
    """The entry that the keeper added last; a keeper that only reads, begins or ends a journal adds none."""
    steps = _get(result, "journal", "steps")
    if _argument(result, "action") == "step" and isinstance(steps, list) and steps and isinstance(steps[-1], Mapping):
        yield _step(steps[-1])


def _baseline(result: Result, named: Result) -> Entry:
    numbers = result.get("numbers")
    return {
        "kind": "baseline",
        "action": clip(named.get("action") or "", 40),
        "tier": clip(named.get("tier") or "", 80),
        "result": clip(result.get("result") or "", 40),
        "evidence": clip(result.get("evidence") or ""),
        "numbers": dict(list(_flat(numbers))[:MOST_NUMBERS]),
    }


def _flat(numbers: Any, prefix: str = "") -> Iterator[tuple[str, float | int]]:
    """Numbers of a mapping of mappings, named by their path: {qwen: {p95_s: 0.2}} is qwen.p95_s."""
    for name, value in numbers.items() if isinstance(numbers, Mapping) else ():
        number = _number(value)
        if number is not None:
            yield clip(f"{prefix}{name}", 80), number
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _measured(result: Result, task: str) -> Iterator[Entry]:
    if "result" in result:
        yield _baseline(result, {name: _argument(result, name) for name in ("action", "tier")})


def _drain(result: Result, task: str) -> Iterator[Entry]:
    before, after = result.get("before"), result.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield {
            "kind": "drain",
            "backend": _argument(result, "backend"),
            "server": _argument(result, "server"),
            "before": _server(before),
            "after": _server(after),
            "waited_s": _number(result.get("waited_s")),
        }


def _server(server: Result) -> Entry:
    return {"state": clip(server.get("state") or "", 20)} | {
        key: _number(server.get(key)) for key in ("weight", "sessions", "queue")
    }


def _release(result: Result, task: str) -> Iterator[Entry]:
    """release_switch says before and after, python_release previous and id."""
    before, after = result.get("before", result.get("previous")), result.get("after", result.get("id"))
    app = _argument(result, "app")
    if app and isinstance(before, str) and isinstance(after, str) and result.get("changed"):
        yield _version(app, before, after)


_READERS: dict[str, Callable[[Result, str], Iterator[Entry]]] = {
    "health_gate": _gate,
    "rollout_journal": _journal,
    "rollout_baseline": _measured,
    "haproxy_server": _drain,
    "release_switch": _release,
    "python_release": _release,
}
