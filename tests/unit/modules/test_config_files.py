"""config_files on a real file system: check mode and bad contents change nothing, a second run is quiet."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def me() -> dict[str, str]:
    return {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def desired(root: Path, me: dict[str, str]) -> dict[str, Any]:
    return {
        "directories": [{"path": f"{root}/etc", "mode": "0750", **me}],
        "files": [{"path": f"{root}/etc/a.conf", "content": "a = 1\n", "mode": "0640", **me}],
        "secret_files": [{"path": f"{root}/etc/secret", "content": "password-0123456789\n", "mode": "0600", **me}],
        "links": [{"path": f"{root}/current", "target": "etc"}],
        "absent": [f"{root}/old"],
    }


def test_check_apply_again(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    (tmp_path / "old").write_text("x")
    want = desired(tmp_path, me)
    checked = run_module("config_files", check=True, **want)
    assert checked["changed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]

    applied = run_module("config_files", **want)
    assert not applied["failed"], applied
    assert applied["changed_paths"] == checked["changed_paths"]
    assert (tmp_path / "etc/a.conf").read_text() == "a = 1\n"
    assert (tmp_path / "etc/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "current").readlink() == Path("etc")
    assert not (tmp_path / "old").exists()

    again = run_module("config_files", **want)
    assert not again["changed"]
    assert again["diff"] == []


def test_a_secret_is_in_no_result(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    result = run_module("config_files", **desired(tmp_path, me))
    assert "password-0123456789" not in repr(result)
    assert "a = 1" in repr(result["diff"])


def test_mode_alone_is_a_change_and_names_both(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    want = desired(tmp_path, me)
    run_module("config_files", **want)
    (tmp_path / "etc/a.conf").chmod(0o666)
    result = run_module("config_files", **want)
    assert "0666 -> " in result["changed_paths"][0]
    assert (tmp_path / "etc/a.conf").stat().st_mode & 0o777 == 0o640


def test_a_content_that_fails_validation_changes_nothing(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    file = {"path": f"{tmp_path}/good", "content": "1", "validate": "test -s %s", **me}
    bad = {"path": f"{tmp_path}/bad", "content": "2", "validate": "grep -q never %s", **me}
    result = run_module("config_files", files=[file, bad])
    assert result["failed"]
    assert f"{tmp_path}/bad" in result["msg"]
    assert "grep -q never" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_unknown_owner_says_the_remedy(tmp_path: Path, run_module: Run) -> None:
    result = run_module("config_files", files=[{"path": f"{tmp_path}/x", "content": "1", "owner": "nobody-here"}])
    assert result["failed"]
    assert "nobody-here" in result["msg"]
    assert "users" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_the_way_is_refused(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    (tmp_path / "x").mkdir()
    result = run_module("config_files", files=[{"path": f"{tmp_path}/x", "content": "1", **me}])
    assert result["failed"]
    assert "is a directory" in result["msg"]


def test_bad_mode_is_refused_before_anything_is_written(tmp_path: Path, run_module: Run, me: dict[str, str]) -> None:
    result = run_module("config_files", files=[{"path": f"{tmp_path}/x", "content": "1", "mode": "rw-", **me}])
    assert result["failed"]
    assert "not octal" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def block(path: Path, *lines: str) -> dict[str, str]:
    return {"path": str(path), "name": "ours", "content": "\n".join(lines)}


def test_a_block_comes_first_is_replaced_where_it_stands_and_leaves_the_rest(tmp_path: Path, run_module: Run) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    hosts.chmod(0o600)
    assert run_module("config_files", check=True, blocks=[block(hosts, "a")])["changed"]
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    assert run_module("config_files", blocks=[block(hosts, "a")])["changed"]
    assert hosts.read_text() == "# BEGIN ours\na\n# END ours\n127.0.0.1 localhost\n"
    hosts.write_text("# mine\n" + hosts.read_text())
    assert not run_module("config_files", blocks=[block(hosts, "a")])["changed"]
    result = run_module("config_files", blocks=[block(hosts, "b", "c")])
    assert result["changed_paths"] == [f"{hosts}: block ours"]
    assert hosts.read_text() == "# mine\n# BEGIN ours\nb\nc\n# END ours\n127.0.0.1 localhost\n"
    assert hosts.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["# BEGIN ours\n", "# END ours\n# BEGIN ours\n", "# BEGIN ours\n# END ours\n# END ours\n"]
)
def test_a_block_whose_end_is_not_known_is_refused(tmp_path: Path, run_module: Run, text: str) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(text)
    result = run_module("config_files", blocks=[block(hosts, "a")])
    assert result["failed"]
    assert "'# END ours'" in result["msg"]
    assert hosts.read_text() == text
