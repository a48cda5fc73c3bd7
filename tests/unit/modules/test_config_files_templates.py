"""config_files renders templates on the control node: real ansible-playbook runs with a role made here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from tools.runs import Run, run

TEMPLATE = "{% for name in names %}\nname = {{ name }}\n{% endfor %}\n{{ extra | default('none') }}\n"


def play(tmp_path: Path, *files: dict[str, Any]) -> Run:
    role = tmp_path / "roles" / "demo"
    (role / "tasks").mkdir(parents=True)
    (role / "templates").mkdir()
    (role / "templates" / "a.conf.j2").write_text(TEMPLATE)
    own = {"owner": "root", "group": "root"} if os.getuid() == 0 else {}
    entries = [{**own, **entry} for entry in files]
    (role / "tasks" / "main.yml").write_text(yaml.safe_dump([{"name": "Files", "config_files": {"files": entries}}]))
    site = [{"name": "Demo", "hosts": "localhost", "gather_facts": False, "roles": ["demo"]}]
    (tmp_path / "site.yml").write_text(yaml.safe_dump(site))
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(tmp_path / "site.yml"), "--diff"]
    return run(*command, "-e", '{"names": ["x", "y"]}', timeout=120)


def test_blocks_leave_no_lines_and_each_entry_has_its_own_variables(tmp_path: Path) -> None:
    first = {"path": str(tmp_path / "a.conf"), "template": "a.conf.j2"}
    play(tmp_path, first, {"path": str(tmp_path / "b.conf"), "template": "a.conf.j2", "template_vars": {"extra": "b"}})
    assert (tmp_path / "a.conf").read_text() == "name = x\nname = y\nnone\n"
    assert (tmp_path / "b.conf").read_text() == "name = x\nname = y\nb\n"


def test_an_undefined_variable_names_file_template_and_variable_and_nothing_is_written(tmp_path: Path) -> None:
    good = {"path": str(tmp_path / "good.conf"), "content": "good\n"}
    (tmp_path / "bad.conf.j2").write_text("{{ nobody_set_this }}\n")
    bad = {"path": str(tmp_path / "bad.conf"), "template": str(tmp_path / "bad.conf.j2")}
    done = play(tmp_path, good, bad)
    assert done.status != 0
    for word in ("bad.conf", "bad.conf.j2", "nobody_set_this"):
        assert word in done.output
    assert not (tmp_path / "good.conf").exists()


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = play(tmp_path, {"path": str(tmp_path / "a.conf"), "template": "absent.j2"})
    assert done.status != 0
    assert "template absent.j2 was not found" in done.output
