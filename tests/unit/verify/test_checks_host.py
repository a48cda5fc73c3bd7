"""Every host: its certificate, and stand-ins of rolling updates."""

from __future__ import annotations

from pathlib import Path

from verify_doubles import outcome, plan

from module_utils.devmentor.checks_base import Recorder, Row
from module_utils.devmentor.checks_host import check_host, judge_stand_ins


def test_the_certificates_days(tls: dict[str, str]) -> None:
    recorder = Recorder(plan(tls), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1] == Row("host", "h1", "certificate", "pass", "30 days left")
    recorder = Recorder(plan(tls, certificate_days=60), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1].result == "fail"


def test_a_stand_in_runs_in_a_rolling_update_only(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    running = "qwen-surge.service loaded active running QWEN's stand-in during a rolling update\n"
    assert outcome(lambda: judge_stand_ins("", lock)) == ("pass", "none runs")
    result, evidence = outcome(lambda: judge_stand_ins(running, lock))
    assert (result, evidence.split()[0]) == ("fail", "qwen-surge.service")
    assert "maint" in evidence
    lock.write_text("{}")
    assert outcome(lambda: judge_stand_ins(running, lock))[0] == "pass"
