"""one_at_a_time of service_units, with hosts that are pretended: what they answer is given here, the turns are real."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[3]


class Hosts:
    """Each host's answers, an exception for a host that is lost; `most` is how many acted at the same time."""

    def __init__(self, reports: dict[str, dict[str, Any] | Exception], failing: frozenset[str] = frozenset()) -> None:
        self.reports, self.failing = reports, failing
        self.lock, self.acting, self.most, self.acted = threading.Lock(), 0, 0, []  # type: ignore[var-annotated]

    def report(self, host: str) -> dict[str, Any]:
        time.sleep(0.05)  # all have begun when the first one knows what it has to do
        answer = self.reports[host]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def act(self, host: str) -> dict[str, Any]:
        with self.lock:
            self.acting += 1
            self.most = max(self.most, self.acting)
            self.acted.append(host)
        time.sleep(0.1)
        with self.lock:
            self.acting -= 1
        return {"failed": True, "msg": "broken"} if host in self.failing else {"changed": True}


def everywhere(hosts: Hosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("turns", ROOT / "action_plugins" / "service_units.py")
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path), raising=False)
    results: dict[str, dict[str, Any]] = {}

    def one(host: str) -> None:
        action = object.__new__(plugin.ActionModule)
        action._task = SimpleNamespace(args={"units": [], "one_at_a_time": True}, check_mode=False, _uuid="task")

        def execute(module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
            return hosts.report(host) if module_args.get("report_only") else hosts.act(host)

        action._execute_module = execute
        with contextlib.suppress(AnsibleConnectionFailure):
            results[host] = action.run(task_vars={"inventory_hostname": host})

    threads = [threading.Thread(target=one, args=(host,)) for host in hosts.reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


IDLE: dict[str, Any] = {"changed": False, "pending": [], "interrupts": False}
START = {"changed": False, "pending": ["x.service: start (is inactive)"], "interrupts": False}
RESTART = {"changed": False, "pending": ["x.service: restart (newer)"], "interrupts": True}


def test_hosts_that_interrupt_something_go_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Hosts({"a": RESTART, "b": RESTART, "c": RESTART, "d": IDLE})
    results = everywhere(hosts, monkeypatch, tmp_path)
    assert hosts.most == 1
    assert sorted(hosts.acted) == ["a", "b", "c"]
    assert not results["d"]["changed"]


def test_units_that_are_down_start_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Hosts({"a": START, "b": START, "c": START})
    everywhere(hosts, monkeypatch, tmp_path)
    assert hosts.most > 1


def test_after_a_host_that_failed_no_other_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    hosts = Hosts(dict.fromkeys(names, RESTART), failing=frozenset(names))
    results = everywhere(hosts, monkeypatch, tmp_path)
    assert len(hosts.acted) == 1
    first = hosts.acted[0]
    assert results[first]["msg"] == "broken"
    for host in set(names) - {first}:
        assert results[host]["failed"]
        assert first in results[host]["msg"]
        assert "restart (newer)" in results[host]["msg"]


@pytest.mark.parametrize(
    "a",
    [START, {"failed": True, "msg": "no such unit"}, AnsibleConnectionFailure("no route")],
    ids=["does not start", "cannot be asked", "is lost"],
)
def test_nothing_is_interrupted_while_another_host_does_not_work(
    a: dict[str, Any] | Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Hosts({"a": a, "b": RESTART, "c": RESTART, "d": IDLE}, failing=frozenset({"a"}))
    results = everywhere(hosts, monkeypatch, tmp_path)
    assert set(hosts.acted) <= {"a"}
    for host in ("b", "c"):
        assert "left as it is, because a failed before it" in results[host]["msg"]
    assert results["d"] == IDLE


def test_what_is_down_has_started_before_anything_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Hosts({"a": RESTART, "b": START, "c": RESTART})
    everywhere(hosts, monkeypatch, tmp_path)
    assert hosts.acted[0] == "b"
    assert hosts.most == 1


def test_who_has_nothing_to_do_does_not_wait_for_who_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "turn-task").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        began = time.monotonic()
        assert everywhere(Hosts({"a": IDLE}), monkeypatch, tmp_path) == {"a": IDLE}
        assert time.monotonic() - began < 5


def test_no_role_puts_what_it_interrupts_under_throttle() -> None:
    """Under `throttle` a host acts before the next one is asked, so it cannot know that the next one is down."""
    throttled = [
        (path.parts[-3], task["when"])
        for path in sorted((ROOT / "roles").glob("*/tasks/*.yml"))
        for task in yaml.safe_load(path.read_text()) or []
        if "service_units" in task and "throttle" in task
    ]
    assert [role for role, _ in throttled] == ["qdrant"]
    assert "not __qdrant_peer.member" in throttled[0][1]
