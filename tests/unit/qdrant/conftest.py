"""The collection as the role declares it."""

from pathlib import Path

import pytest
import yaml

from module_utils.devmentor.qdrant import Collection

ROLE = Path(__file__).parents[3] / "roles" / "qdrant"


@pytest.fixture
def wanted():
    [declared] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())["qdrant_collections"]
    return Collection(**declared)
