"""Every name a lab puts on the machine, derived from one identity: what `down` must remove needs no record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

# Linux interface names hold 15 characters; nspawn prefixes the machine name with `vb-`.
MACHINE_LIMIT = 12


def lab_identity(checkout: Path, inventory_file: Path) -> str:
    """Eight hexadecimal digits that two checkouts, or two inventories of one checkout, do not share."""
    return hashlib.sha256(f"{checkout.resolve()}\0{inventory_file.resolve()}".encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Names:
    """The machine-wide names of the lab with this identity."""

    identity: str

    @property
    def bridge(self) -> str:
        return f"dm{self.identity}"

    @property
    def cgroup(self) -> str:
        return f"dmlab-{self.identity}"

    @property
    def nat_table(self) -> str:
        return f"dmlab_{self.identity}_nat"

    @property
    def cut_table(self) -> str:
        return f"dmlab_{self.identity}_cut"

    def machine(self, index: int) -> str:
        name = f"{self.machine_prefix}{index}"
        if len(name) > MACHINE_LIMIT:
            raise ValueError(f"machine name {name} is longer than {MACHINE_LIMIT} characters")
        return name

    def interface(self, index: int) -> str:
        """The host's end on the bridge."""
        return f"vb-{self.machine(index)}"

    @property
    def machine_prefix(self) -> str:
        return f"{self.identity}h"

    @property
    def interface_prefix(self) -> str:
        return f"vb-{self.machine_prefix}"
