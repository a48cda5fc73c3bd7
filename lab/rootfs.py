"""Root file systems of bare Debian hosts, made once per machine and shared read-only by every lab."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from lab import machine
from lab.proc import run_contained
from lab.progress import Progress
from lab.state import CACHE, locked

# What a freshly installed Debian server has before Ansible meets it, and nothing of the platform.
PACKAGES = (
    "ca-certificates", "dbus", "init", "iproute2", "iputils-ping", "kmod", "libpam-systemd", "logrotate", "netbase",
    "openssh-server", "procps", "python3", "python3-apt", "sudo", "systemd", "systemd-sysv",
)  # fmt: skip

# Identity belongs to a host, not to the image: systemd and the lab give each host its own.
STRIP = "rm -f etc/ssh/ssh_host_* etc/hostname var/lib/systemd/random-seed && : > etc/machine-id"


def _hooks(certificates: list[Path]) -> list[str]:
    copies = [f'install -D -m 0644 "{path}" "$1/usr/local/share/ca-certificates/{path.name}"' for path in certificates]
    return [
        *copies,
        'chroot "$1" update-ca-certificates',
        'chroot "$1" systemctl enable systemd-networkd.service ssh.service',
        # The platform's own time service is deployed; the image's timers only disturb measurements.
        'chroot "$1" systemctl disable apt-daily.timer apt-daily-upgrade.timer',
        f'cd "$1" && {STRIP}',
    ]


def ensure_rootfs(suite: str, progress: Progress) -> Path:
    """The directory of a suite's root file system, built when this machine has none with the same content."""
    sources = machine.sources_for(suite, machine.debian_sources())
    settings = machine.apt_settings()
    certificates = machine.extra_certificates()
    hooks = _hooks(certificates)
    content = [*PACKAGES, *sources, settings, *hooks, *(path.read_text() for path in certificates)]
    digest = hashlib.sha256("\0".join(content).encode()).hexdigest()[:12]
    target = CACHE / "rootfs" / f"{suite}-{digest}"
    if target.is_dir():
        return target

    with locked(CACHE / "rootfs" / f"{suite}-{digest}.lock"):
        if target.is_dir():
            return target
        staged = target.with_suffix(".partial")
        shutil.rmtree(staged, ignore_errors=True)
        options = [f"--customize-hook={hook}" for hook in hooks]
        options += [f"--aptopt={line}" for line in settings.splitlines()]
        with progress.step(f"building the root file system of Debian {suite} (once per machine)"):
            run_contained(
                ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase",
                 f"--include={','.join(PACKAGES)}", *options, suite, staged, *sources],
                log=CACHE / "logs" / f"rootfs-{suite}.log",
                what=f"building the Debian {suite} root file system",
            )  # fmt: skip
        staged.rename(target)
    return target
