"""The lab that the integration tests share: made once, deployed once, taken down whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.runs import ROOT, lab

INVENTORY = Path(os.environ.get("DEVMENTOR_INVENTORY", ROOT / "inventories" / "lab"))
RESULTS = ROOT / ".cache" / "bench" / "deploy.json"
# An operator who looks into a failure keeps the hosts: DEVMENTOR_KEEP_LAB=1.
KEEP = os.environ.get("DEVMENTOR_KEEP_LAB") == "1"


@pytest.fixture(scope="session")
def inventory() -> Path:
    return INVENTORY


@pytest.fixture(scope="session")
def hosts(inventory: Path) -> Iterator[Path]:
    """The lab's hosts are gone afterwards. Tests bring them up themselves: some want them bare, some prebaked."""
    yield inventory
    if not KEEP:
        lab(inventory, "down").require()
