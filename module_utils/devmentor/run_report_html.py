"""A run report as one HTML page that needs nothing else. Every text is escaped; the policy lets no other script run."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .run_report_style import SCRIPT, STYLE
from .run_report_table import duration

Row = Mapping[str, Any]

_GOOD = {"ok", "pass", "passed", "finished", "done", "ready", "UP"}
_NOTE = {
    "changed",
    "unknown",
    "too little traffic",
    "rescued",
    "ignored",
    "drain",
    "maint",
    "interrupted",
    "not finished",
}
_BAD = {"failed", "fail", "unreachable", "went back", "failed, went back"}


class Safe(str):
    """Markup of ours; every other string is escaped."""

    __slots__ = ()


def _esc(value: object) -> Safe:
    return value if isinstance(value, Safe) else Safe(html.escape(str(value), quote=True))


def _join(parts: Iterable[object]) -> Safe:
    return Safe("".join(_esc(part) for part in parts))


def _tag(value: object) -> Safe:
    text = str(value)
    kind = "good" if text in _GOOD else "note" if text in _NOTE else "bad" if text in _BAD else ""
    return Safe(f'<span class="tag {kind}">{_esc(text)}</span>')


def _code(value: object) -> Safe:
    return Safe(f"<code>{_esc(value)}</code>") if value not in ("", None) else Safe("")


def _number(value: object, shown: object = None) -> Safe:
    """A cell that sorts by its number."""
    if value is None:
        return Safe('<td class="n" data-v="-1"></td>')
    quiet = "" if value else " zero"
    return Safe(f'<td class="n{quiet}" data-v="{_esc(value)}">{_esc(value if shown is None else shown)}</td>')


def _seconds(value: Any) -> Safe:
    return _number(value, duration(value) if value is not None else "")


def _bar(share: float) -> Safe:
    width = max(0.0, min(1.0, share)) * 140
    bar = f'<rect class="rest" width="140" height="10" rx="3"/><rect width="{width:.1f}" height="10" rx="3"/>'
    return Safe(f'<td aria-hidden="true" data-v="{share:.4f}"><svg viewBox="0 0 140 10">{bar}</svg></td>')


def _cell(value: object, kind: str = "keep") -> Safe:
    return Safe(f'<td class="{kind}">{_esc(value)}</td>')


def _table(headings: Sequence[str], rows: Iterable[Iterable[object]], kind: str = "sorts") -> Safe:
    """A cell that is no markup yet becomes one. A heading with a `>` before it is that of a column of numbers."""
    head = "".join(
        f'<th scope="col"{" class=n" if heading.startswith(">") else ""}>{_esc(heading.lstrip(">"))}</th>'
        for heading in headings
    )
    body = "".join(
        f"<tr>{''.join(c if isinstance(c, Safe) and c.startswith('<td') else _cell(c) for c in row)}</tr>"
        for row in rows
    )
    return Safe(f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _section(name: str, title: str, note: str, table: Safe) -> Safe:
    head = f'<div class="head"><h2>{_esc(title)}</h2><span>{_esc(note)}</span></div>'
    return Safe(f'<section id="{name}">{head}<div class="wide">{table}</div></section>')


def _failures(rows: Sequence[Row]) -> Safe:
    table = _table(
        ["Host", "Task", "Phase", "What", "Message"],
        ([r["host"], _cell(r["task"], "text"), _cell(r["phase"], "text"), _tag(r["handled"] or r["kind"]),
          _cell(_code(r["message"]), "text")] for r in sorted(rows, key=lambda row: bool(row["handled"]))),
    )  # fmt: skip
    open_ones = sum(not r["handled"] for r in rows)
    note = f"{open_ones} not handled, {len(rows) - open_ones} rescued or ignored"
    return _section("failures", "Failures", note, table)


def _phases(every: Sequence[Row]) -> Safe:
    """Without those in which no host did anything: a run with tags has many."""
    rows = [r for r in every if r["hosts"]]
    longest = max([r["seconds"] for r in rows] + [0.001])
    table = _table(
        ["Phase", ">Hosts", ">OK", ">Changed", ">Failed", ">Unreachable", ">Duration", ""],
        ([_cell(r["name"], "text"), *(_number(r[key]) for key in ("hosts", "ok", "changed", "failed", "unreachable")),
          _seconds(r["seconds"]), _bar(r["seconds"] / longest)] for r in rows),
    )  # fmt: skip
    return _section("phases", "Phases", "each host counts once, by what became of it", table)


def _steps(rows: Sequence[Row]) -> Safe:
    table = _table(
        ["Tier", "Host", "Result", "Before", "After", "Journal", ">Duration", "Evidence"],
        ([r["tier"], r["host"], _tag(r["result"]), _code(r["before"]), _code(r["after"]),
          _cell(_course(r["phases"]), "text"), _seconds(r["seconds"]), _cell(r["evidence"], "text")] for r in rows),
    )  # fmt: skip
    return _section("steps", "Rolling steps", "one host of one tier at a time, as the journal tells it", table)


def _course(phases: Sequence[Row]) -> str:
    """began, drained after 4.2 s, done after 31.0 s."""
    start = phases[0]["at_s"] if phases else 0.0
    return ", ".join(
        p["phase"].replace("_", " ") + (f" after {duration(p['at_s'] - start)}" if p["at_s"] > start else "")
        for p in phases
    )


def _versions(rows: Sequence[Row]) -> Safe:
    changed = [r for r in rows if r["before"] != r["after"]]
    table = _table(
        ["Host", "Component", "Before", "After", "Result"],
        ([r["host"], r["component"], _code(r["before"]), _code(r["after"]),
          _tag("changed" if r["before"] != r["after"] else "same")]
         for r in [*changed, *(r for r in rows if r["before"] == r["after"])]),
    )  # fmt: skip
    return _section("versions", "Versions", f"{len(changed)} of {len(rows)} changed", table)


def _gates(rows: Sequence[Row]) -> Safe:
    table = _table(
        [">At", "Host", "Gate", "Result", ">Waited", "Evidence"],
        ([_seconds(r["at_s"]), r["host"], _cell(r["name"], "text"), _tag("passed" if r["passed"] else "failed"),
          _seconds(r["waited_s"]), _cell(_evidence(r), "text")] for r in rows),
    )  # fmt: skip
    passed = sum(r["passed"] for r in rows)
    return _section("gates", "Health gates", f"{passed} of {len(rows)} passed", table)


def _evidence(gate: Row) -> Safe:
    checks, timeline = gate["checks"], gate["timeline"]
    results = [check["result"] for check in checks]
    told = ", ".join(f"{results.count(name)} {name}" for name in ("pass", "fail", "unknown") if name in results)
    inner = _table(
        ["Check", "Type", "Result", "Evidence"],
        ([c["name"], c["type"], _tag(c["result"]), _cell(c["evidence"], "text")] for c in checks),
        "checks",
    )
    if len(timeline) > len(checks):
        moments = ([_seconds(t["at"]) if not isinstance(t["at"], str) else t["at"], t["name"], _tag(t["result"]),
                    _cell(t["evidence"], "text")] for t in timeline)  # fmt: skip
        history = _table([">At", "Check", "Result", "Evidence"], moments, "checks")
        inner = _join([inner, Safe("<h3>Changes over time</h3>"), history])
    opened = "" if gate["passed"] else " open"
    return Safe(f"<details{opened}><summary>{_esc(told or 'no checks')}</summary>{inner}</details>")


def _baselines(rows: Sequence[Row]) -> Safe:
    table = _table(
        [">At", "Host", "What", "Tier", "Result", "Evidence", "Numbers"],
        ([_seconds(r["at_s"]), r["host"], r["action"], r["tier"], _tag(r["result"].replace("_", " ")),
          _cell(r["evidence"], "text"),
          _cell(", ".join(f"{name} {value:.4g}" for name, value in r["numbers"].items()), "text")] for r in rows),
    )  # fmt: skip
    return _section("baselines", "What clients saw", "error ratio and latency, beside the baseline", table)


def _drains(rows: Sequence[Row]) -> Safe:
    def server(state: Row) -> Safe:
        busy = ", ".join(f"{state[key]} {key}" for key in ("sessions", "queue") if state[key])
        return _join([_tag(state["state"]), f" {busy}" if busy else ""])

    table = _table(
        [">At", "Gateway", "Backend", "Server", "Before", "After", ">Waited"],
        ([_seconds(r["at_s"]), r["host"], r["backend"], r["server"], server(r["before"]), server(r["after"]),
          _seconds(r["waited_s"])] for r in rows),
    )  # fmt: skip
    return _section("drains", "Gateway servers", "drained, brought in again", table)


def _hosts(rows: Sequence[Row]) -> Safe:
    counts = ("ok", "changed", "failed", "unreachable", "skipped", "rescued", "ignored")
    table = _table(
        ["Host", "Result", *(f">{'OK' if name == 'ok' else name.capitalize()}" for name in counts)],
        ([r["host"], _tag(r["result"]), *(_number(r[name]) for name in counts)] for r in rows),
    )
    return _section("hosts", "Hosts", "tasks by result, as in Ansible's recap", table)


def _slowest(rows: Sequence[Row]) -> Safe:
    longest = max([r["seconds"] for r in rows] + [0.001])
    table = _table(
        ["Task", "Phase", ">Hosts", "Last host", ">Duration", ""],
        ([_cell(r["task"], "text"), _cell(r["phase"], "text"), _number(r["hosts"]), r["last_host"],
          _seconds(r["seconds"]), _bar(r["seconds"] / longest)] for r in rows),
    )  # fmt: skip
    return _section("slowest", "Slowest tasks", "from the start of a task to its last host's answer", table)


_SECTIONS = (
    ("failures", _failures),
    ("phases", _phases),
    ("steps", _steps),
    ("versions", _versions),
    ("gates", _gates),
    ("baselines", _baselines),
    ("drains", _drains),
    ("hosts", _hosts),
    ("slowest_tasks", _slowest),
)


def _tiles(document: Row) -> Safe:
    hosts = document["hosts"]
    tiles = [("Duration", duration(document["run"]["seconds"]), "")]
    tiles += [("Hosts", str(len(hosts)), ""), ("Tasks", str(document["run"]["tasks"]), "")]
    for result, kind in (("changed", "note"), ("failed", "bad"), ("unreachable", "bad")):
        count = sum(row["result"] == result for row in hosts)
        tiles.append((f"Hosts {result}", str(count), kind if count else ""))
    if document["gates"]:
        passed = sum(gate["passed"] for gate in document["gates"])
        every = len(document["gates"])
        tiles.append(("Gates passed", f"{passed} of {every}", "bad" if passed < every else ""))
    return _join(
        Safe(f'<div class="{kind}"><dt>{_esc(name)}</dt><dd>{_esc(value)}</dd></div>') for name, value, kind in tiles
    )


def _options(options: Row) -> Safe:
    shown = []
    for name, value in options.items():
        if value is True:
            shown.append(f"<li>{_esc(name.replace('_', ' '))}</li>")
        elif value:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            shown.append(f"<li><b>{_esc(name.replace('_', ' '))}</b>{_esc(text)}</li>")
    return Safe(f'<ul class="options">{"".join(shown)}</ul>' if shown else "")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page(document: Mapping[str, Any]) -> str:
    """The page of a report (schema: docs/reports.md)."""
    run = document["run"]
    policy = f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; img-src data:; base-uri 'none'"
    began = run["began"].replace("T", " ").removesuffix("+00:00")
    sections = _join(render(document[key]) for key, render in _SECTIONS if document[key])
    dropped = f" {run['dropped']} entries were left out to keep it small." if run["dropped"] else ""
    mode = ' <span class="tag note">check mode: nothing was changed</span>' if run["options"].get("check") else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{_esc(run["playbook"])}: {_esc(run["state"])}, {_esc(began)} UTC</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{_esc(run["playbook"])}</h1>{_tag(run["state"])}{mode}</header>
<p class="sub">{_esc(began)} UTC</p>
{_options(run["options"])}
<dl class="tiles">{_tiles(document)}</dl>
<input id="filter" type="search" placeholder="Filter all rows, by host or task" aria-label="Filter all rows" hidden>
{sections}
<footer>{_esc(document["schema"])} {_esc(document["version"])}, from the run's own events.{_esc(dropped)}</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
