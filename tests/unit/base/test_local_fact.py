"""roles/base's local fact: only what is there, recorded and unchanged is named, and nothing else makes it fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, StrictUndefined

from module_utils.devmentor.local_facts import held
from tests.unit.conftest import load_module

TEMPLATE = Path(__file__).resolve().parents[3] / "roles" / "base" / "templates" / "devmentor.fact.j2"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["to_json"] = json.dumps
    text = environment.from_string(TEMPLATE.read_text()).render(
        __base_packages=["dpkg", "no-such-package"],
        devmentor_release_dir=str(tmp_path / "opt"),
        devmentor_state_dir=str(tmp_path / "var"),
        devmentor_settled_dir=str(tmp_path / "settled"),
        __base_library_dir=str(TEMPLATE.parents[3] / "module_utils"),
    )
    (tmp_path / "fact.py").write_text(text)
    for name in ("opt", "var"):
        (tmp_path / name).mkdir()
    return tmp_path


def fact(host: Path) -> dict[str, Any]:
    command = [sys.executable, str(host / "fact.py")]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def release(host: Path, app: str, recorded: str, linked: str, there: bool = True) -> None:
    folder = host / "opt" / app
    (folder / "releases").mkdir(parents=True)
    if there:
        (folder / "releases" / linked).mkdir()
    (folder / "current").symlink_to(f"releases/{linked}")
    (folder / "release.json").write_text(json.dumps({"id": recorded}))


def test_a_host_with_nothing(host: Path) -> None:
    said = fact(host)
    assert said["releases"] == said["artifacts"] == said["settled"] == {}
    assert "no-such-package" not in said["packages"]


def test_a_release_counts_when_it_is_there_and_its_switch_was_recorded(host: Path) -> None:
    release(host, "qwen", "1-a", "1-a")
    release(host, "pbml", "1-b", "1-a")
    release(host, "llamacpp", "1-a", "1-a", there=False)
    (host / "opt" / "other").mkdir()
    (host / "opt" / "other" / "release.json").write_text("half a rec")
    assert fact(host)["releases"] == {"qwen": "1-a"}


def test_versions_of_packages_and_releases(host: Path) -> None:
    release(host, "qwen", "1-a", "1-a")
    said = fact(host)
    assert said["versions"]["qwen"] == "1-a"
    assert said["packages"] == ["dpkg"] == list(said["package_versions"])
    assert said["package_versions"]["dpkg"][0].isdigit()
    assert said["held"] == []


def test_an_artefact_counts_until_it_changes(host: Path) -> None:
    """The stamp is written by artifact_install itself."""
    model = host / "var" / "models" / "m" / "model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    load_module("artifact_install").remember(str(model), sha256)
    assert fact(host)["artifacts"] == {str(model): sha256}
    before = model.stat()
    model.write_bytes(b"WEIGHTS")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fact(host)["artifacts"] == {}


@pytest.mark.parametrize(
    "facts",
    [{}, {"ansible_local": {}}, {"ansible_local": {"devmentor": "error loading facts"}}, {"ansible_local": None}],
)
def test_what_is_not_said_is_not_believed(facts: dict[str, Any]) -> None:
    assert held({"ansible_facts": facts}, "releases") == {}
    assert held({}, "artifacts") == {}
