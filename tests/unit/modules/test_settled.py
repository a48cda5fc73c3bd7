"""What config_files leaves settled is believed while nothing differs; once anything does, the host is asked."""

from __future__ import annotations

import grp
import json
import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from module_utils.devmentor.run_changes import RunChanges
from module_utils.devmentor.settled import holding
from tests.unit.modules.pretended_systemctl import PretendedSystemctl
from tools.runs import Run, run

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
USER = {"name": ME["owner"], "group": ME["group"]}


@pytest.fixture
def settled(tmp_path: Path, run_module: Callable[..., dict[str, Any]], systemctl: PretendedSystemctl) -> Path:
    """A folder of records with one, of all kinds of entries, that holds."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    systemctl.began(time.time() + 5)
    result = run_module(
        "config_files",
        users=[USER],
        directories=[{"path": f"{tmp_path}/etc", **ME}],
        files=[{"path": f"{tmp_path}/etc/a.conf", "content": "a = 1\n", **ME}],
        secret_files=[{"path": f"{tmp_path}/etc/secret", "content": "password-0123456789\n", "mode": "0600", **ME}],
        blocks=[{"path": f"{tmp_path}/hosts", "name": "ours", "content": "a"}],
        links=[{"path": f"{tmp_path}/current", "target": "etc"}],
        absent=[f"{tmp_path}/old"],
        units=[{"name": "x.service", "enabled": True, "restart_on": [f"{tmp_path}/etc/a.conf"]}],
        record={"directory": f"{tmp_path}/settled", "name": "demo-files", "fingerprint": "f1"},
    )
    assert not result["failed"], result
    assert holding(f"{tmp_path}/settled") == {"f1": "demo-files"}
    return tmp_path / "settled"


def replaced(path: Path, text: str) -> None:
    """Another content of the same size and modification time."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: replaced(root / "etc/a.conf", "a = 2\n"),
    "secret": lambda root: replaced(root / "etc/secret", "password-9876543210\n"),
    "mode": lambda root: (root / "etc/a.conf").chmod(0o666),
    "gone": lambda root: (root / "etc/a.conf").unlink(),
    "block": lambda root: replaced(root / "hosts", (root / "hosts").read_text().replace("\na\n", "\nb\n")),
    "directory": lambda root: (root / "etc").chmod(0o700),
    "link": lambda root: ((root / "current").unlink(), (root / "current").symlink_to("other")),
    "absent": lambda root: (root / "old").symlink_to("nowhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_not_settled(settled: Path, change: str) -> None:
    CHANGES[change](settled.parent)
    assert holding(str(settled)) == {}


@pytest.mark.parametrize(
    "properties", [{"ActiveState": "failed"}, {"UnitFileState": "disabled"}, {"NeedDaemonReload": "yes"}]
)
def test_a_unit_with_something_to_do_is_not_settled(
    settled: Path, systemctl: PretendedSystemctl, properties: dict[str, str]
) -> None:
    systemctl.set(**properties)
    assert holding(str(settled)) == {}


def test_a_process_older_than_its_file_is_not_settled(settled: Path, systemctl: PretendedSystemctl) -> None:
    systemctl.began(time.time() - 60)
    assert holding(str(settled)) == {}


@pytest.mark.parametrize("user", [{**USER, "name": "nobody-here"}, {**USER, "groups": ["no-such-group"]}])
def test_an_account_that_lacks_something_is_not_settled(settled: Path, user: dict[str, Any]) -> None:
    file = settled / "demo-files.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "users": [{"groups": [], **user}]}))
    assert holding(str(settled)) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"users": []}', "half a rec"])
def test_a_record_that_cannot_be_read_is_none_and_hides_no_other(settled: Path, text: str) -> None:
    (settled / "a.json").write_text(text)
    assert holding(str(settled)) == {"f1": "demo-files"}


def test_a_record_has_no_secret_and_is_for_root_alone(settled: Path) -> None:
    file = settled / "demo-files.json"
    assert "password-0123456789" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_record_is_judged_after_the_limit(settled: Path) -> None:
    assert holding(str(settled), limit_s=0.0) == {}


def test_without_the_callback_nothing_is_known_of_the_run() -> None:
    assert not RunChanges().none_yet()
    assert RunChanges(watched=True).none_yet()
    assert not RunChanges(watched=True, changed=True).none_yet()


FACT = """\
#!/bin/sh
exec {python} -c '
import json, sys
sys.path.insert(0, "{project}")
from module_utils.devmentor.settled import holding
print(json.dumps({{"settled": holding("{root}/settled")}}))'
"""


def play(root: Path, before: str = "true", changes: bool = False, content: str = "wanted") -> Run:
    """Gathers the facts, runs the shell command `before` on the host, then config_files."""
    project = Path(__file__).resolve().parents[3]
    (root / "facts").mkdir(exist_ok=True)
    fact = root / "facts" / "devmentor.fact"
    fact.write_text(FACT.format(python="python3", project=project, root=root))
    fact.chmod(0o755)
    tasks = [
        {"ansible.builtin.setup": {"gather_subset": ["!all", "local"], "fact_path": str(root / "facts")}},
        {"ansible.builtin.shell": before, "changed_when": changes},
        {"name": "Have it", "config_files": {"files": [{"path": f"{root}/a.conf", "content": content, **ME}]}},
    ]
    book = root / "play.yml"
    book.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(book)]
    done = run(*command, "-e", f"devmentor_settled_dir={root}/settled", timeout=120)
    assert done.status == 0, done.output
    return done


def test_a_settled_host_is_asked_once_the_run_has_changed_or_wants_something_else(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    play(tmp_path)
    assert file.read_text() == "wanted"
    # Not asked: what happened after the facts were gathered is not seen.
    play(tmp_path, before=f"echo -n other > {file}")
    assert file.read_text() == "other"
    # The facts tell.
    play(tmp_path)
    assert file.read_text() == "wanted"
    # A change in the run: the facts are not believed any more.
    play(tmp_path, before=f"echo -n other > {file}", changes=True)
    assert file.read_text() == "wanted"
    play(tmp_path, content="new")
    assert file.read_text() == "new"
