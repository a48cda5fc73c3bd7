"""verify's checks of every host: its units and its certificate."""

from __future__ import annotations

import ssl
import time

from .checks_base import Failed, Plan, Recorder
from .checks_client import run_command


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
