"""What campaigns of faults share: which rounds are left, what is kept, and the exit status. No platform is there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import campaign

Played = list[tuple[str, int]]


def entry(fault: str, number: int = 1, **change: Any) -> dict[str, Any]:
    return {"fault": fault, "seed": 1, "round": number, "rate": 4.0, "problems": [], "commit": "abc"} | change


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setattr(campaign, "commit", lambda: "abc")
    monkeypatch.setattr(campaign, "have", lambda inventory, keep: None)
    return []


def run(path: Path, played: Played, faults: list[str], problems: tuple[str, ...] = (), **options: Any) -> int:
    def play(deployed: object, fault: str, seed: int, number: int, evidence: Path) -> dict[str, Any]:
        played.append((fault, number))
        return entry(fault, number, problems=[each for each in problems if each == fault])

    given = {"inventory": path, "seed": 1, "rounds": 1, "keep": True, "only_look": True, **options}
    found = campaign.Campaign(
        "test", path, play, lambda each: each["fault"], lambda result: None, same=lambda each: each["rate"] == 4.0
    )
    return found.run(argparse.Namespace(**given), faults)


def test_rounds_of_another_commit_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    campaign.save(path, [entry("none"), entry("postgres", commit="abc+"), entry("none", commit="def")])
    assert [each["commit"] for each in campaign.known(path, "abc")] == ["abc", "abc+"]
    assert campaign.known(tmp_path / "none.json", "abc") == []
    assert json.loads(path.read_text())["rounds"][0]["fault"] == "none"


def test_an_interrupted_campaign_goes_on_and_repeats_what_had_findings(tmp_path: Path, played: Played) -> None:
    path = tmp_path / "result.json"
    campaign.save(path, [entry("a"), entry("b", problems=["lost 1"]), entry("c", rate=8.0)])
    assert run(path, played, ["a", "b", "c"]) == 0
    assert played == [("b", 1), ("c", 1)]
    kept = sorted((each["fault"], each["rate"], each["problems"]) for each in json.loads(path.read_text())["rounds"])
    assert kept == [("a", 4.0, []), ("b", 4.0, []), ("c", 4.0, []), ("c", 8.0, [])]
    played.clear()
    assert run(path, played, ["a", "b", "c"]) == 0
    assert played == []


def test_a_finding_is_the_exit_status(tmp_path: Path, played: Played) -> None:
    assert run(tmp_path / "result.json", played, ["a", "b"], problems=("b",), rounds=2) == 1
    assert played == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
