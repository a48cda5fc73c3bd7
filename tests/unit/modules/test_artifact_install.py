"""artifact_install in real ansible-playbook runs: what is missing is copied once, what is damaged is replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.runs import Run, run

CONTENT = b"weights" * 1000


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    return tmp_path / "models" / "m" / "1" / "model.gguf"


def play(tmp_path: Path, target: Path, *arguments: str, sha256: str = "") -> Run:
    artifact: dict[str, Any] = {
        "src": str(tmp_path / "model.gguf"),
        "path": str(target),
        "sha256": sha256 or hashlib.sha256(CONTENT).hexdigest(),
    }
    tasks = [{"name": "Install", "artifact_install": {"artifacts": [artifact]}}]
    site = [{"name": "Install", "hosts": "localhost", "gather_facts": False, "tasks": tasks}]
    (tmp_path / "site.yml").write_text(yaml.safe_dump(site))
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(tmp_path / "site.yml"), *arguments]
    return run(*command, timeout=120)


def test_check_copies_nothing_then_once_then_not_again(tmp_path: Path, installed: Path) -> None:
    checked = play(tmp_path, installed, "--check").require()
    assert checked.changed() == {"localhost": 1}
    assert not installed.parent.exists()
    assert play(tmp_path, installed).require().changed() == {"localhost": 1}
    assert installed.read_bytes() == CONTENT
    assert play(tmp_path, installed).require().changed() == {}


def test_a_damaged_file_is_found_and_replaced(tmp_path: Path, installed: Path) -> None:
    play(tmp_path, installed).require()
    installed.write_bytes(CONTENT[:-1] + b"x")
    assert play(tmp_path, installed).require().changed() == {"localhost": 1}
    assert installed.read_bytes() == CONTENT


def test_what_was_verified_is_not_read_again(
    tmp_path: Path, installed: Path, run_module: Callable[..., dict[str, Any]]
) -> None:
    """Proved by a stamp that says of another content what only reading it could tell."""
    installed.parent.mkdir(parents=True)
    installed.write_bytes(b"other")
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    wanted = [{"src": str(tmp_path / "model.gguf"), "path": str(installed), "sha256": sha256}]
    assert run_module("artifact_install", check=True, artifacts=wanted)["missing"] == [str(installed)]
    info = installed.stat()
    stamp = {"sha256": sha256, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "ctime_ns": info.st_ctime_ns}
    (installed.parent / ".model.gguf.verified").write_text(json.dumps(stamp))
    assert run_module("artifact_install", check=True, artifacts=wanted)["missing"] == []


def test_a_source_with_another_content_than_declared_fails_and_names_the_path(tmp_path: Path, installed: Path) -> None:
    done = play(tmp_path, installed, sha256="0" * 64)
    assert done.status != 0
    assert str(installed) in done.output
    assert "not the wanted content" in done.output
