"""Which version of each component a host has: its packages by dpkg, its releases by their links, Qdrant's by its unit.

Runs on the hosts, on Python's standard library: for the local fact, and for the metric devmentor_version_info.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import json
import pathlib
import re
import subprocess

# Component -> Debian package, as the metric names them.
PACKAGES = {
    "haproxy": "haproxy",
    "keepalived": "keepalived",
    "valkey": "valkey-server",
    "postgres": "postgresql-17",
    "pgbackrest": "pgbackrest",
    "pgbouncer": "pgbouncer",
    "prometheus": "prometheus",
    "alertmanager": "prometheus-alertmanager",
    "node_exporter": "prometheus-node-exporter",
    "process_exporter": "prometheus-process-exporter",
    "postgres_exporter": "prometheus-postgres-exporter",
    "pgbouncer_exporter": "prometheus-pgbouncer-exporter",
    "redis_exporter": "prometheus-redis-exporter",
    "blackbox_exporter": "prometheus-blackbox-exporter",
}
DPKG_STATUS = pathlib.Path("/var/lib/dpkg/status")
UNITS = pathlib.Path("/etc/systemd/system")
METRIC = "devmentor_version_info"


@dataclasses.dataclass(frozen=True)
class Package:
    """An installed package: its Debian version, and whether it is held."""

    version: str
    held: bool


def installed(names: c.Iterable[str]) -> dict[str, Package]:
    """Those of the packages that are installed and configured."""
    form = "--showformat=${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\n"
    command = ["dpkg-query", "--show", form, *names]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    fields = (line.split(" ") for line in lines)
    return {name: Package(version, want == "hold") for want, status, name, version in fields if status == "installed"}


def releases(root: pathlib.Path) -> dict[str, str]:
    """App -> id of the release that it is switched to, as devmentor/releases.py has it.

    The link leads somewhere, and the switch was recorded.
    """
    found = {}
    for record in root.glob("*/release.json"):
        try:
            link = record.with_name("current")
            recorded = json.loads(record.read_text())["id"]
            if link.is_symlink() and link.exists() and link.readlink().name == recorded:
                found[record.parent.name] = recorded
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return found


def artefact_releases(root: pathlib.Path, units: pathlib.Path = UNITS) -> dict[str, str]:
    """Qdrant -> the release whose binary its unit starts: it has no link `current`, the unit names the path."""
    try:
        text = (units / "qdrant.service").read_text()
    except OSError:
        return {}
    found = re.search(rf"^ExecStart=.*{re.escape(str(root))}/qdrant/releases/([^/\s]+)/", text, re.MULTILINE)
    return {"qdrant": found[1]} if found and (root / "qdrant/releases" / found[1]).is_dir() else {}


def versions(
    packages: c.Mapping[str, Package], switched: c.Mapping[str, str], artefacts: c.Mapping[str, str]
) -> dict[str, str]:
    """Component -> version of what is installed here."""
    debian = {component: packages[name].version for component, name in PACKAGES.items() if name in packages}
    return {**debian, **artefacts, **switched}


def exposition(found: c.Mapping[str, str]) -> str:
    """The text exposition of devmentor_version_info."""

    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    rows = [
        f'{METRIC}{{component="{quoted(component)}",version="{quoted(version)}"}} 1'
        for component, version in sorted(found.items())
    ]
    head = [f"# HELP {METRIC} Version of a component that is installed here.", f"# TYPE {METRIC} gauge"]
    return "".join(f"{line}\n" for line in [*head, *rows])


def changed_at(root: pathlib.Path, status: pathlib.Path = DPKG_STATUS, units: pathlib.Path = UNITS) -> float:
    """When what the versions are read from last changed, in seconds since the epoch; 0 where nothing is there."""
    newest = 0.0
    for path in (status, units / "qdrant.service", *root.glob("*/release.json"), *root.glob("*/current")):
        with contextlib.suppress(OSError):
            newest = max(newest, path.lstat().st_mtime)
    return newest


def refresh(
    target: pathlib.Path, root: pathlib.Path, status: pathlib.Path = DPKG_STATUS, units: pathlib.Path = UNITS
) -> bool:
    """Write the metric into `target` where what it is read from is newer; whether it was written.

    Called four times a minute: with nothing new it is a few stat calls. A file that is as old as a change is written
    again, because the change may have come within the clock's tick.
    """
    try:
        fresh = target.stat().st_mtime > changed_at(root, status, units)
    except OSError:
        fresh = False
    if fresh:
        return False
    found = versions(installed(PACKAGES.values()), releases(root), artefact_releases(root, units))
    staged = target.with_suffix(".staged")
    staged.write_text(exposition(found))
    staged.chmod(0o644)
    staged.replace(target)
    return True
