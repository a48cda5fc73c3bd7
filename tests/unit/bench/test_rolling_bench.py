"""What `make bench-rolling` says of an arm, its tables and its picture."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.bench.rolling import newer, report, run
from tests.bench.rolling.load import Rates, Result
from tests.bench.rolling.records import Record
from tests.bench.rolling.serving import Sample

ROOT = Path(__file__).parents[3]


def at(second: float, took: float = 0.1, outcome: str = "ok", kind: str = "chat", degraded: str = "") -> Record:
    return Record(kind, second, second, second + took, outcome, degraded=degraded)


def result(*more: Record, fewest: int = 3) -> Result:
    """A minute before the playbook and one from it on."""
    well = [at(n + 0.5, kind=kind) for n in range(120) for kind in ("chat", "sql write")]
    serving = [Sample(n, "g1", {"qwen": ["q"] * (fewest if n == 80 else 3), "pbml": ["p"] * 3}) for n in range(120)]
    marks = [(60.0, run.BEGAN), (100.0, run.ENDED)]
    return Result("now", 120.0, Rates(), marks, [*well, *more], serving, [], [], 0.01, (1.0, 2.0))


def test_an_arm_is_judged_from_its_playbook_s_beginning_to_the_load_s_end() -> None:
    more = at(10, outcome="cut"), at(70, outcome="cut"), at(110, 3.0), at(71, degraded="secondary")
    found = run.told(result(*more, fewest=2), 0, 40.0)
    chat = found["during"]["chat"]
    assert (chat["failed"], chat["slow"], chat["degraded"]) == (1, 1, {"secondary": 1})
    assert found["before"]["chat"]["failed"] == 1
    assert found["least_serving"] == {"qwen": 2, "pbml": 3}
    assert found["usual_serving"] == {"qwen": 3, "pbml": 3}
    rows = {row["second"]: row for row in found["timeline"]}
    assert rows[10]["failed"] == {"chat": 1}
    assert rows[50]["slow"] == 1
    assert run.problems(found) == 1
    assert run.problems({**found, "status": 2, "lost": ["row"]}) == 3
    json.dumps(found)


def test_the_page_gets_its_tables_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "rolling-bench.md"
    page.write_text((ROOT / "docs" / "rolling-bench.md").read_text())
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PICTURE", page.with_suffix(".svg"))
    options = argparse.Namespace(chat=2.0, stream=1.0, ingest=2.0, fetch=2.0, sql=10.0)
    arms: dict[str, Any] = {
        "update": {"commit": "abc", **run.told(result(), 0, 40.0)},
        "plain": {"commit": "abc", **run.told(result(at(65, outcome="503 unavailable")), 0, 40.0)},
    }
    path = tmp_path / "rolling.json"
    run.save(path, {"update": arms["update"]}, options)
    run.save(path, {"plain": arms["plain"]}, options)
    report.write(path)
    text = page.read_text()
    assert "| rolling update | 40 | 120 | 0 | 0 | 0 | 0 | 3 (3), 3 (3) |" in text
    assert "`503 unavailable` 1" in text
    drawn = re.findall(r'<rect [^>]*fill="(#[a-z0-9]+)"', page.with_suffix(".svg").read_text())
    assert drawn == ["#c40"]


def test_an_arm_without_any_failure_can_be_drawn() -> None:
    entry = {"commit": "abc", **run.told(result(), 0, 40.0)}
    assert "#c40" not in report.picture({"arms": {"update": entry}})


def test_the_peer_restarts_what_the_platform_s_own_roll_restarts() -> None:
    tiers = yaml.safe_load((ROOT / "roles" / "rollout" / "vars" / "main.yml").read_text())["__rollout_tiers"]
    plays = yaml.safe_load((ROOT / run.PLAIN).read_text())
    assert all(play["serial"] == 1 for play in plays)
    plain = {unit for play in plays for unit in play["vars"]["units"]}
    assert {unit for tier in tiers.values() for unit in tier.get("units", ())} <= plain


def test_what_is_rolled_to_is_said_by_extra_variables() -> None:
    given = json.loads(newer.variables("b", {"lab1": {"haproxy": "1+newer1"}})[1])
    for host, wanted in (("lab1", {"haproxy": "1+newer1"}), ("lab9", {})):
        templar = Templar(loader=DataLoader(), variables={**given, "inventory_hostname": host})
        assert templar.template(trust_as_template(given["devmentor_package_versions"])) == wanted
    assert given["devmentor_release_label"] == "b"
    other = json.loads(newer.variables("c", {})[1])
    assert "devmentor_package_versions" not in other
    assert given["qdrant_max_request_size_mb"] != other["qdrant_max_request_size_mb"] > 32
    assert set(newer.PACKAGES) <= set(newer.GROUPS)
