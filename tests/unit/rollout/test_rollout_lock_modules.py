"""rollout_lock and rollout_journal as Ansible calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., dict[str, Any]]
DOCUMENT = {
    "run": "r1", "writer": "r1", "kind": "update", "target": {"release": "a1"}, "steps": [], "state": "running",
    "term": 1, "seq": 1, "after": [0, 0],
}  # fmt: skip


def test_lock(run_module: Run, tmp_path: Path) -> None:
    def ask(action: str, **more: Any) -> dict[str, Any]:
        return run_module("rollout_lock", action=action, directory=str(tmp_path / "d"), **more)

    assert ask("acquire", run="r1", owner="anna@c1", check=True)["changed"]
    assert not ask("show")["held"]
    assert ask("acquire", run="r1", owner="anna@c1")["mine"]
    refused = ask("acquire", run="r2", owner="ben@c2")
    assert (refused["failed"], refused["changed"], refused["held"], refused["run"]) == (False, False, True, "r1")
    assert ask("acquire", run="r2", owner="ben@c2", take_over="r1")["mine"]
    assert ask("release", run="r2")["changed"]
    (tmp_path / "d/lock.json").write_text("{}")
    assert "names no run. Remedy" in ask("show")["msg"]


def test_journal(run_module: Run, tmp_path: Path) -> None:
    def ask(action: str, **more: Any) -> dict[str, Any]:
        return run_module("rollout_journal", action=action, directory=str(tmp_path / "d"), **more)

    assert ask("read") == {"failed": False, "changed": False, "journal": {}}
    assert "the run that has the lock beside it, none, not by r1" in ask("write", document=DOCUMENT)["msg"]
    run_module("rollout_lock", action="acquire", run="r1", owner="anna@c1", directory=str(tmp_path / "d"))
    assert ask("read", run="r9")["failed"]
    assert ask("read", run="r1")["journal"] == {}
    assert ask("write", document=DOCUMENT)["changed"]
    entry = {"tier": "qwen", "host": "h1", "phase": "done"}
    assert ask("step", run="r1", seq=2, step=entry, check=True)["journal"]["seq"] == 2
    assert ask("read")["journal"]["seq"] == 1
    assert ask("step", run="r1", seq=2, step=entry)["changed"]
    assert not ask("step", run="r1", seq=2, step=entry)["changed"]
    assert ask("step", run="r9", seq=3, step=entry)["failed"]
    assert ask("finish", run="r1", seq=3)["journal"]["state"] == "finished"
    (tmp_path / "d/journal.json").write_text("{")
    answer = ask("read")
    assert answer["failed"]
    assert "copy the file from another keeper" in answer["msg"]
