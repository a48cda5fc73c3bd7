"""What the lab takes from the machine it runs on: its programs, package sources, name servers, certificates."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import PrerequisiteError
from lab.proc import run

PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "apt-config": "apt",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CERTIFICATES = Path("/usr/local/share/ca-certificates")
# The parts of the machine's apt configuration that decide whether a download works at all.
CLIENT_SETTINGS = re.compile(
    r"Acquire::(https?|ftp|Check-Valid-Until|Check-Date|Retries|ForceIPv|Queue-Mode|By-Hash|AllowInsecure|Languages)"
)


def missing_packages(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Debian packages of the programs (program -> package) that this machine does not have."""
    absent = {package for program, package in programs.items() if shutil.which(program) is None}
    if not KEYRING.exists():
        absent.add("debian-archive-keyring")
    return sorted(absent)


def require_root() -> None:
    if os.geteuid() != 0:
        raise PrerequisiteError("the lab makes network interfaces and containers, which needs root", "run it with sudo")


def require_machine(
    programs: Mapping[str, str] = PROGRAMS, installer: str = "python -m lab install-prerequisites"
) -> None:
    """Raise one error that names everything that is missing. `installer`: the command that installs it."""
    require_root()
    if absent := missing_packages(programs):
        names = " ".join(absent)
        raise PrerequisiteError(
            f"this machine lacks the Debian package{'s' if len(absent) > 1 else ''} {names}",
            f"{installer} (or: apt-get install {names})",
        )


def install_prerequisites(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Install what is missing by apt; returns the packages."""
    require_root()
    absent = missing_packages(programs)
    if absent:
        run(["apt-get", "update"])
        run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends", *absent])
    return absent


@dataclass(frozen=True)
class Source:
    """One place that the machine gets Debian packages from."""

    uri: str
    suite: str
    components: str


def _deb822(text: str) -> list[Source]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            if not line.startswith("#") and ":" in line:
                key, _, value = line.partition(":")
                fields[key.strip().lower()] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            found += [
                Source(uri, suite, fields.get("components", ""))
                for uri in fields.get("uris", "").split()
                for suite in fields.get("suites", "").split()
            ]
    return found


def _one_line(text: str) -> list[Source]:
    pattern = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+?)\s*(?:#.*)?$", re.MULTILINE)
    return [Source(*match.groups()) for match in pattern.finditer(text)]


def debian_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """The machine's Debian archives, other vendors' left out."""
    found: list[Source] = []
    for path in sorted([folder / "sources.list", *folder.glob("sources.list.d/*")]):
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = path.read_text()
            found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    return [s for s in found if s.uri.rstrip("/").endswith(("/debian", "/debian-security"))]


def sources_for(suite: str, sources: list[Source]) -> list[str]:
    """The same archives for another Debian release, as one-line sources."""
    lines: list[str] = []
    for source in sources:
        pocket = re.search(r"-(updates|security)$", source.suite)
        if pocket is None and "-" in source.suite:
            continue  # backports, proposed-updates: not what a plain host has
        line = f"deb {source.uri} {suite}{pocket.group(0) if pocket else ''} main"
        if line not in lines:
            lines.append(line)
    if not lines:
        raise PrerequisiteError(
            "this machine's apt knows no Debian archive",
            "name one in /etc/apt/sources.list.d/debian.sources; the hosts use the same",
        )
    return lines


def apt_settings() -> str:
    """The client settings of the machine's apt that hosts need to reach the same archives, as an apt.conf."""
    dump = run(["apt-config", "dump", "--format", '%F "%v";%n'])
    lines = [line for line in dump.splitlines() if CLIENT_SETTINGS.match(line) and not line.endswith(' "";')]
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
        if proxy and not any(line.startswith(f"Acquire::{scheme}::Proxy") for line in lines):
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "".join(f"{line}\n" for line in lines)


def extra_certificates() -> list[Path]:
    return sorted(CERTIFICATES.glob("*.crt")) if CERTIFICATES.is_dir() else []


def name_servers() -> list[str]:
    """Name servers that hosts on another network can reach too; a stub on loopback is not one."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if path.exists():
            words = re.findall(r"^nameserver\s+(\S+)", path.read_text(), re.MULTILINE)
            usable = [word for word in words if not word.startswith("127.") and word != "::1"]
            if usable:
                return usable
    raise PrerequisiteError(
        "this machine's name server listens on loopback only, so hosts cannot use it",
        "name one that is reachable from other addresses in /etc/resolv.conf",
    )
