"""Calls of the agents' API, made inside the hosts: the firewall lets nobody else in, and the token stays there."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import yaml

from lab.errors import LabError
from lab.host import Host
from tools.runs import ROOT

PORTS = ROOT / "roles" / "platform" / "defaults" / "main" / "ports.yml"
TLS = "--cacert /etc/devmentor/tls/ca.crt --cert /etc/devmentor/tls/host.crt --key /etc/devmentor/tls/host.key"
# The token goes to curl by its standard input: `printf` is the shell's own.
CALL = (
    "printf 'header = \"Authorization: Bearer %s\"\\n' \"$(cat /etc/devmentor/pgagent/token)\" | "
    "curl --silent --show-error --max-time {limit} --config - {tls} --header 'Content-Type: application/json' "
    "{data} https://{address}:{port}/v1/{path}"
)


def port(name: str) -> int:
    """A port of the platform by its name."""
    return int(yaml.safe_load(PORTS.read_text())["devmentor_ports"][name])


def call(host: Host, path: str, body: dict[str, Any] | None = None, seconds: int = 30) -> dict[str, Any]:
    """The answer of a host's agent; POST where there is a body. Raises LabError where it refuses or is silent."""
    data = f"--data {shlex.quote(json.dumps(body))}" if body is not None else ""
    script = CALL.format(limit=seconds, tls=TLS, data=data, address=host.address, port=port("pgagent"), path=path)
    try:
        done = host.execute(["sh", "-c", script], check=False, timeout=seconds + 2)
        answer = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{host.name}: the agent's {path} gives no answer: {error}", "journalctl -u pgagent") from error
    if "error" in answer:
        raise LabError(f"{host.name}: the agent refuses {path}: {answer['error']}", "journalctl -u pgagent")
    found: dict[str, Any] = answer
    return found
