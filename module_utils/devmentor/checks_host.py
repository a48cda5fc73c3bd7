"""verify's checks of every host: its units, its certificate, and that no stand-in of a rolling update was forgotten."""

from __future__ import annotations

import pathlib
import ssl
import time

from .checks_base import Failed, Plan, Recorder
from .checks_client import run_command

LOCK = "/var/lib/devmentor/rollout/lock.json"
_LIST = ["systemctl", "list-units", "--plain", "--no-legend", "--full"]
_STAND_INS = [*_LIST, "--state=active,activating", "*-surge.service"]


def judge_stand_ins(units: str, lock: pathlib.Path) -> str:
    """`units`: what systemd lists of stand-ins that run. They belong to a rolling update, which holds a lock."""
    names = [line.split()[0] for line in units.splitlines() if line.strip()]
    if not names:
        return "none runs"
    if lock.exists():
        return f"{', '.join(names)}, of the rolling update that runs"
    raise Failed(
        f"{', '.join(names)} runs, and no rolling update holds {lock}. Remedy: run an interrupted one again; if "
        "there is none, put the stand-in's place at both gateways into maint and stop the unit"
    )


def check_host(plan: Plan, record: Recorder) -> None:
    def failed_units() -> str:
        units = run_command(["systemctl", "--failed", "--plain", "--no-legend", "--full"]).split("\n")
        names = [line.split()[0] for line in units if line.strip()]
        if names:
            raise Failed(f"failed: {', '.join(names)}")
        return "no unit failed"

    def certificate() -> str:
        text = run_command(["openssl", "x509", "-noout", "-enddate", "-in", plan.tls["cert"]])
        days = (ssl.cert_time_to_seconds(text.strip().partition("=")[2]) - time.time()) / 86400
        if days < plan.certificate_days:
            raise Failed(f"{days:.0f} days left, {plan.certificate_days} are the limit; run site.yml --tags pki")
        return f"{days:.0f} days left"

    record.check("systemd units", failed_units)
    record.check("certificate", certificate)
    record.check("stand-ins", lambda: judge_stand_ins(run_command(_STAND_INS), pathlib.Path(LOCK)))
