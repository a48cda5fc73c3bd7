"""Kernel settings of the machine that hosts need. Raised with the first lab, put back with the last one."""

from __future__ import annotations

import json
from pathlib import Path

from lab.state import write_atomically

# Every systemd takes some ten inotify instances, all of them root's: the kernel's 128 are ten hosts.
NEEDED = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 524288}
BEFORE = Path("/run/devmentor-lab.sysctl.json")
PROC_SYS = Path("/proc/sys")


def raise_settings() -> None:
    """Raise what is lower than needed. The caller holds the machine's lock."""
    current = {name: int((PROC_SYS / name).read_text()) for name in NEEDED}
    changed = {name: value for name, value in current.items() if value < NEEDED[name]}
    if not changed:
        return
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else {}
    write_atomically(BEFORE, json.dumps(changed | before) + "\n")
    for name in changed:
        (PROC_SYS / name).write_text(f"{NEEDED[name]}\n")


def restore_settings() -> None:
    """Put back what was changed, unless something else has set it since. The caller holds the machine's lock."""
    if not BEFORE.exists():
        return
    for name, value in json.loads(BEFORE.read_text()).items():
        if int((PROC_SYS / name).read_text()) == NEEDED[name]:
            (PROC_SYS / name).write_text(f"{value}\n")
    BEFORE.unlink()
