import pytest

from lab import machine
from lab.errors import PrerequisiteError
from lab.machine import Source

DEB822 = """
Types: deb deb-src
# an old comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Enabled: no
"""


def test_sources_of_the_machine_for_another_release(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/vendor.list").write_text("deb [signed-by=/k] https://vendor.example/apt stable main\n")
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main # the same\n")
    assert machine.sources_for("trixie", machine.debian_sources(tmp_path)) == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
    ]


def test_backports_are_not_carried_over():
    sources = [Source("http://m.example/debian", s, "main") for s in ("bookworm", "bookworm-backports")]
    assert machine.sources_for("bookworm", sources) == ["deb http://m.example/debian bookworm main"]


def test_a_machine_without_debian_sources_says_so():
    with pytest.raises(PrerequisiteError, match=r"debian\.sources"):
        machine.sources_for("trixie", [])


def test_missing_programs_are_named_by_package_in_one_error(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda program: None if program in ("nft", "mmdebstrap") else "/x")
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    with pytest.raises(PrerequisiteError) as error:
        machine.require_machine()
    assert "mmdebstrap nftables" in str(error.value)
    assert "install-prerequisites" in str(error.value)


def test_without_root_the_error_says_sudo(monkeypatch):
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(PrerequisiteError, match="sudo"):
        machine.require_machine()
