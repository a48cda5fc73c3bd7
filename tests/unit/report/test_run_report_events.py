"""What is read of a result, by modules' names and by the key `report`."""

from __future__ import annotations

from typing import Any

import pytest

from module_utils.devmentor.run_report_events import MOST_CHECKS, MOST_TIMELINE, entries


def read(module: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    return list(entries(module, result, "the task"))


GATE = {
    "passed": False,
    "msg": "health_gate: shut",
    "waited_s": 12.5,
    "rounds": 3,
    "checks": [{"name": "ready", "type": "http", "result": "fail", "evidence": "503", "secret": "x"}],
    "timeline": [{"at": 0.2, "name": "ready", "result": "fail", "evidence": "503"}],
    "invocation": {"module_args": {"secrets": "x", "checks": []}},
}


def test_a_gate_is_read_by_known_keys_only() -> None:
    assert read("health_gate", GATE) == [
        {
            "kind": "gate", "name": "the task", "passed": False, "waited_s": 12.5,
            "checks": [{"name": "ready", "type": "http", "result": "fail", "evidence": "503"}],
            "timeline": [{"at": 0.2, "name": "ready", "result": "fail", "evidence": "503"}],
        }
    ]  # fmt: skip


def test_long_gates_keep_their_end() -> None:
    many = [{"at": at, "name": "ready", "result": "fail", "evidence": "x" * 5000} for at in range(500)]
    [entry] = read("health_gate", {**GATE, "checks": many, "timeline": many})
    assert (len(entry["checks"]), len(entry["timeline"])) == (MOST_CHECKS, MOST_TIMELINE)
    assert entry["timeline"][-1]["at"] == 499
    assert len(entry["timeline"][-1]["evidence"]) <= 400


@pytest.mark.parametrize("mark", [{"_ansible_no_log": True}, {"censored": "hidden"}])
def test_nothing_is_read_of_a_hidden_result_or_item(mark: dict[str, Any]) -> None:
    assert read("health_gate", {**GATE, **mark}) == []
    assert read("anything", {"report": {"kind": "version", "component": "x", "after": "1"}, **mark}) == []
    assert read("health_gate", {"results": [{**GATE, **mark}]}) == []
    assert read("setup", {"ansible_facts": {"ansible_local": {"devmentor": {"versions": {"a": "1"}}}}, **mark}) == []


def test_items_of_a_loop_are_read() -> None:
    drained = {
        "before": {"state": "ready", "weight": 1, "sessions": 3, "queue": 0, "status": "UP"},
        "after": {"state": "drain", "weight": 1, "sessions": 0, "queue": 0},
        "waited_s": 4.5,
        "invocation": {"module_args": {"backend": "qwen", "server": "q1", "socket": "/x"}},
    }
    [entry] = read("haproxy_server", {"changed": True, "results": [drained]})
    assert (entry["backend"], entry["server"], entry["waited_s"]) == ("qwen", "q1", 4.5)
    assert entry["before"] == {"state": "ready", "weight": 1, "sessions": 3, "queue": 0}


def test_the_journal_is_read_where_an_entry_was_added() -> None:
    journal = {"steps": [{"tier": "qwen", "host": "q1", "phase": "drained", "evidence": "e", "seq": 3}]}
    for action, wanted in (("step", 1), ("read", 0), ("write", 0), ("finish", 0)):
        result = {"journal": journal, "invocation": {"module_args": {"action": action}}}
        assert len(read("rollout_journal", result)) == wanted
    assert read("rollout_journal", {"journal": {}, "invocation": {"module_args": {"action": "step"}}}) == []


def test_releases_say_their_app_and_only_when_they_changed() -> None:
    said = {"before": "1", "after": "2", "changed": True, "invocation": {"module_args": {"app": "qwen"}}}
    assert read("release_switch", said) == [{"kind": "version", "component": "qwen", "before": "1", "after": "2"}]
    assert read("release_switch", {**said, "changed": False}) == []
    assert read(
        "python_release", {"id": "2", "previous": "1", "changed": True, **{"invocation": said["invocation"]}}
    ) == [{"kind": "version", "component": "qwen", "before": "1", "after": "2"}]


def test_before_and_after_of_other_modules_are_not_versions() -> None:
    assert read("lineinfile", {"before": "password=x", "after": "y", "changed": True, "diff": []}) == []


def test_versions_of_the_local_fact() -> None:
    facts = {"ansible_local": {"devmentor": {"versions": {"haproxy": "3.0.11", "broken": {"a": 1}}}}}
    assert read("setup", {"ansible_facts": facts}) == [
        {"kind": "installed", "component": "haproxy", "before": "", "after": "3.0.11"}
    ]


def test_a_baseline_with_its_numbers() -> None:
    result = {
        "result": "too_little_traffic",
        "evidence": "12 of 100 requests",
        "numbers": {"qwen": {"p95_s": 0.2, "text": "no"}, "requests": 12, "flag": True},
        "invocation": {"module_args": {"action": "compare", "tier": "qwen", "prometheus": "https://x"}},
    }
    [entry] = read("rollout_baseline", result)
    assert entry == {
        "kind": "baseline", "action": "compare", "tier": "qwen", "result": "too_little_traffic",
        "evidence": "12 of 100 requests", "numbers": {"qwen.p95_s": 0.2, "requests": 12},
    }  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [
        {"report": "text"},
        {"report": [None, 3, {"kind": "gate"}, {"kind": "gate", "passed": "yes"}, {}]},
        {"report": {"kind": "version"}},
        {"results": "text"},
        {"results": [None, "x"]},
        {"ansible_facts": "x"},
        {"ansible_facts": {"ansible_local": 3}},
    ],
)
def test_what_has_another_shape_is_left_alone(result: dict[str, Any]) -> None:
    assert read("any", result) == []
    for module in ("health_gate", "rollout_journal", "rollout_baseline", "haproxy_server", "release_switch"):
        assert read(module, result) == []
