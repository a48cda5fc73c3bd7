"""Prometheus' rules: promtool runs their unit tests, and no rule is without one that fires and one that does not."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = sorted((ROOT / "roles/prometheus/files/rules").glob("*.yml"))
TESTS = sorted((ROOT / "tests/promtool").glob("*.yml"))


# Parsed once: the tests are many and the pure-Python parser is slow.
@functools.cache
def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def expectations() -> list[dict[str, Any]]:
    cases = [case for path in TESTS for case in load(path)["tests"]]
    return [check for case in cases for check in case.get("promql_expr_test", [])]


def severities(check: dict[str, Any]) -> set[str]:
    return {found for sample in check["exp_samples"] for found in re.findall(r'severity="(\w+)"', sample["labels"])}


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    assert program, "promtool is not installed: apt-get install prometheus (Debian 12) or promtool (Debian 13)"
    run = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_role_deploys_every_rule_file() -> None:
    assert sorted(load(ROOT / "roles/prometheus/vars/main.yml")["__prometheus_rules"]) == [path.stem for path in RULES]


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", *map(str, RULES))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_runs_the_unit_tests(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(path))


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alert_has_a_test_that_fires_and_one_that_does_not(rule: dict[str, Any]) -> None:
    severity = rule["labels"]["severity"]
    checks = [check for check in expectations() if f'alertname="{rule["alert"]}"' in check["expr"]]
    assert any(severity in severities(check) for check in checks), "no test expects it to fire"
    assert any(severity not in severities(check) for check in checks), "no test expects it not to fire"


@pytest.mark.parametrize("name", sorted({rule["record"] for rule in rules() if "record" in rule}))
def test_recording_rule_has_a_test_of_its_value(name: str) -> None:
    assert any(check["expr"].startswith(name) and check["exp_samples"] for check in expectations())


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["annotations"]["summary"]
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^### (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def test_the_silences_for_an_offline_host_leave_the_alert_of_a_second_loss() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    silences = [
        dict(re.findall(r"(alertname|severity)=(\w+)", line)) for line in re.findall(r"^ +silence add .*$", text, re.M)
    ]
    labels = [{"alertname": rule["alert"], **rule["labels"]} for rule in alerts()]
    silenced = [
        (each["alertname"], each["severity"])
        for each in labels
        if any(wanted.items() <= each.items() for wanted in silences)
    ]
    assert silenced == [("QdrantReplicaDead", "critical"), ("QdrantReplicasMissing", "warning")]
    assert {"alertname": "QdrantReplicasMissing", "severity": "critical"} in labels
