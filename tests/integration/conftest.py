"""The labs of the integration tests, taken down whatever happens.

`hosts` is the inventory's, made and deployed once for all of `test_platform*.py`; `cluster` is PostgreSQL and its
poolers alone, deployed once for all of `test_postgres_*.py`; `bench` is a small one that each `test_lab_*.py` makes for
itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.postgres import run as chaos
from tests.chaos.postgres.cluster import Cluster
from tests.integration.lab_bench import THREE, Bench, make, remains
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


@pytest.fixture(scope="session")
def cluster(inventory: Path) -> Iterator[Cluster]:
    """Whole, and left whole by each test. The platform's hosts go first: two labs are too many for two cores."""
    if not KEEP:
        lab(inventory, "down").require()
    try:
        yield chaos.deploy(chaos.INVENTORY, fresh=True, volumes=False)
    finally:
        if not KEEP:
            lab(chaos.INVENTORY, "down").require()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = make(tmp_path_factory.mktemp("lab") / "inventory", THREE)
    assert remains(bench.identity) == set()
    try:
        bench.lab("up")
        yield bench
    finally:
        bench.lab("down")
    assert remains(bench.identity) == set()
    assert not (bench.inventory / "group_vars/all/lab.generated.yml").exists()
