"""The HAProxy that the platform runs: Debian 13's package, unpacked into .cache, on whatever Debian the tests run.

Nothing is installed on the machine. Its own mirror is asked for the newer suite, with Debian's archive key; the program
gets the C library of its suite along, by its rpath.
"""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
from pathlib import Path

SUITE = "trixie"
ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "haproxy" / SUITE
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def sources() -> str:
    """The machine's own Debian sources, as they are for SUITE."""
    form = "$(REPO_URI) $(CODENAME)"
    rows = {tuple(line.split()) for line in run("apt-get", "indextargets", "--format", form).splitlines()}
    here = min((codename for _, codename in rows), key=len, default="")
    wanted = {(uri, codename.replace(here, SUITE)) for uri, codename in rows if codename in (here, f"{here}-security")}
    assert wanted, "apt knows no Debian mirror on this machine: see /etc/apt/sources.list.d"
    return "".join(f"deb [signed-by={KEYRING}] {uri} {suite} main\n" for uri, suite in sorted(wanted))


def unpack(folder: Path) -> None:
    """haproxy with everything that it needs, below `folder`."""
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial", "root", "tool"):
        (state / name).mkdir(parents=True)
    (state / "sources.list").write_text(sources())
    settings = {
        "Dir::Etc::SourceList": f"{state}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{state}/lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": state,
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "root",
    }
    own = [f"-o{name}={value}" for name, value in settings.items()]
    run("apt-get", *own, "-qq", "update")
    run("apt-get", *own, "-qq", "-y", "--no-install-recommends", "--download-only", "install", "haproxy")
    for package in (state / "archives").glob("*.deb"):
        run("dpkg-deb", "-x", package, folder / "root")
    patchelf = shutil.which("patchelf")
    if not patchelf:
        run("apt-get", "-qq", "download", "patchelf", cwd=state / "tool")
        run("dpkg-deb", "-x", next((state / "tool").glob("*.deb")), state / "tool")
        patchelf = str(state / "tool/usr/bin/patchelf")
    libraries = folder / "root/usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    program = folder / "root/usr/sbin/haproxy"
    run(patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, program)
    shutil.rmtree(state)


@functools.cache
def haproxy() -> str:
    """Path of the program."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = CACHE / "root/usr/sbin/haproxy"
        # The rpath is absolute: a checkout that was moved fetches it anew.
        complete = CACHE / "complete"
        if not complete.exists() or complete.read_text() != str(CACHE):
            shutil.rmtree(CACHE, ignore_errors=True)
            CACHE.mkdir()
            unpack(CACHE)
            complete.write_text(str(CACHE))
        assert "version 3.0" in run(program, "-v")
        return str(program)
