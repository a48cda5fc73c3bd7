"""What only an administrator asks, of one QWEN instance, on its host itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools.inventory_vars import Inventory
from tools.runs import lab_command

_TLS = "/etc/devmentor/tls"


def ask_instance(inventory: Path, host: str, path: str, body: object = None) -> Any:
    """The JSON answer of the host's instance to GET, or to POST with a body. CalledProcessError where none comes."""
    key = str(Inventory(inventory).value(host, "vault_admin_api_key"))
    lines = [
        f'url = "https://{host}:8080{path}"',
        f'header = "Authorization: Bearer {key}"',
        f'cacert = "{_TLS}/ca.crt"',
        f'cert = "{_TLS}/host.crt"',
        f'key = "{_TLS}/host.key"',
    ]
    if body is not None:
        lines += ['header = "Content-Type: application/json"', f"data = {json.dumps(json.dumps(body))}"]
    # The key goes in on standard input: an argument would be in the host's process list.
    answer = subprocess.run(
        lab_command(inventory, "exec", host, "--", "curl", "--silent", "--config", "-"),
        input="\n".join(lines), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return json.loads(answer.stdout)
