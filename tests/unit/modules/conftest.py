from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.modules.pretended_systemctl import PretendedSystemctl


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedSystemctl:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return PretendedSystemctl(folder)
