"""Every host: its certificate."""

from __future__ import annotations

from verify_doubles import plan

from module_utils.devmentor.checks_base import Recorder, Row
from module_utils.devmentor.checks_host import check_host


def test_the_certificates_days(tls: dict[str, str]) -> None:
    recorder = Recorder(plan(tls), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1] == Row("host", "h1", "certificate", "pass", "30 days left")
    recorder = Recorder(plan(tls, certificate_days=60), "host")
    check_host(recorder.plan, recorder)
    assert recorder.rows[1].result == "fail"
