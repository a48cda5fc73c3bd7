"""systemctl is pretended here (there is no systemd); molecule and the lab's second run ask the real one."""

from __future__ import annotations

import time
from pathlib import Path


class PretendedSystemctl:
    """Answers `systemctl show` with these properties and writes down whatever else it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.properties = {
            "LoadState": "loaded",
            "ActiveState": "active",
            "UnitFileState": "enabled",
            "NeedDaemonReload": "no",
            "FragmentPath": "",
            "DropInPaths": "",
        }
        self.began(time.time())
        script = folder / "systemctl"
        script.write_text(f'#!/bin/sh\n[ "$1" = show ] && exec cat {folder}/show\necho "$@" >> {folder}/asked\n')
        script.chmod(0o755)

    def began(self, moment: float) -> None:
        """The unit began at this wall-clock time (seconds)."""
        monotonic = moment - (time.time() - time.monotonic())
        self.set(InactiveExitTimestampMonotonic=str(int(monotonic * 1e6)))

    def set(self, **properties: str) -> None:
        self.properties |= properties
        (self.folder / "show").write_text("".join(f"{key}={value}\n" for key, value in self.properties.items()))

    def asked(self) -> str:
        file = self.folder / "asked"
        return file.read_text() if file.exists() else ""
