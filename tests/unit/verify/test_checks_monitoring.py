"""Monitoring: Prometheus' targets and rules."""

from __future__ import annotations

import pytest

from module_utils.devmentor.checks_base import Failed
from module_utils.devmentor.checks_monitoring import judge_rules, judge_targets


def test_prometheus() -> None:
    up = {"labels": {"job": "node", "instance": "a:9100"}, "health": "up"}
    assert judge_targets([up]) == "1 targets up"
    with pytest.raises(Failed, match="1 of 2 not up: node b:9100 unknown"):
        judge_targets([up, {"labels": {"job": "node", "instance": "b:9100"}, "health": "unknown"}])
    with pytest.raises(Failed):
        judge_targets([])
    assert judge_rules([{"rules": [{"name": "r", "health": "ok"}]}]) == "1 rules in 1 groups"
    with pytest.raises(Failed, match="errors: r"):
        judge_rules([{"rules": [{"name": "r", "health": "err"}]}])
    with pytest.raises(Failed):
        judge_rules([{"rules": []}])
