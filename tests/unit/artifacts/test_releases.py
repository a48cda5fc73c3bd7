"""What a host does with archives: nothing half done, shared by apps, old ones go, a lost archive is asked for."""

import io
import json
import sys
import tarfile
import zipfile

import pytest

from module_utils.devmentor import releases
from module_utils.devmentor.releases import ReleaseError, Releases, Wanted

PYTHON = ".".join(str(part) for part in sys.version_info[:2])


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as bundle:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))


def uv_wheel():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as bundle:
        bundle.writestr("uv-1.data/scripts/uv", b"#!/bin/false\n")
    return out.getvalue()


class Host:
    """A root directory with the programs a release is installed with at its border."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.releases = Releases(root)
        self.ran = []
        self.fail = ""
        monkeypatch.setattr(releases, "_run", self.run)

    def run(self, command, environment, what):
        self.ran.append(command)
        if self.fail and self.fail in what:
            raise ReleaseError(f"{what} failed")
        if command[1] == "venv":
            (self.root / ".store" / command[-1].rsplit("/", 1)[1] / "bin").mkdir(parents=True)
            assert environment["UV_OFFLINE"] == "1"

    def wanted(self, release="0.1.0-aaaaaaaaaaaa", deps="deps-1", app="qwen", keep=3):
        return Wanted(app, release, deps, PYTHON, keep)

    def copy(self, wanted):
        incoming = self.root / ".store" / "incoming"
        if not (self.root / ".store" / "wheels" / wanted.deps).exists():
            tar(incoming / f"{wanted.deps}.tar", {"uv-1-py3-none-any.whl": uv_wheel(), "thing.whl": b"x"})
        described = json.dumps({"id": wanted.id, "deps": wanted.deps}).encode()
        tar(incoming / f"release-{wanted.id}.tar", {"requirements.txt": b"", "release.json": described})

    def install(self, **changes):
        wanted = self.wanted(**changes)
        missing = self.releases.ensure(wanted).missing
        if missing:
            self.copy(wanted)
            return self.releases.ensure(wanted)
        return None

    def store(self):
        return sorted(path.name for path in (self.root / ".store").iterdir() if path.name[0].isdigit())

    def leftovers(self):
        names = [path.name for path in (self.root / ".store").iterdir()]
        return [name for name in names if name.startswith((".staging", ".own", ".trash"))]


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_missing_archives_are_named_and_nothing_changes(host):
    outcome = host.releases.ensure(host.wanted())
    assert outcome.missing == ["deps-1.tar", "release-0.1.0-aaaaaaaaaaaa.tar"]
    assert outcome.actions == []
    assert host.releases.current("qwen") == ""


def test_installed_switched_recorded_and_then_left_alone(host):
    outcome = host.install()
    assert outcome.actions == ["install 0.1.0-aaaaaaaaaaaa", "switch qwen to 0.1.0-aaaaaaaaaaaa"]
    assert (host.root / "qwen" / "current").resolve() == host.root / ".store" / "0.1.0-aaaaaaaaaaaa"
    assert json.loads((host.root / "qwen" / "release.json").read_text())["id"] == "0.1.0-aaaaaaaaaaaa"
    assert list((host.root / ".store" / "incoming").iterdir()) == []
    before = (host.root / "qwen" / "release.json").stat().st_mtime_ns
    again = host.releases.ensure(host.wanted())
    assert (again.actions, again.missing) == ([], [])
    assert (host.root / "qwen" / "release.json").stat().st_mtime_ns == before


def test_a_second_app_shares_the_release(host):
    host.install()
    host.ran.clear()
    outcome = host.releases.ensure(host.wanted(app="pbml"))
    assert outcome.actions == ["switch pbml to 0.1.0-aaaaaaaaaaaa"]
    assert not [command for command in host.ran if "install" in command]


def test_new_code_needs_only_its_own_archive(host):
    host.install()
    outcome = host.releases.ensure(host.wanted(release="0.1.0-bbbbbbbbbbbb"))
    assert outcome.missing == ["release-0.1.0-bbbbbbbbbbbb.tar"]


def test_check_says_what_it_would_do_and_does_nothing(host):
    outcome = host.releases.ensure(host.wanted(), check=True)
    assert len(outcome.actions) == 2
    assert outcome.missing == []
    assert list(host.root.iterdir()) == []


@pytest.mark.parametrize("step", ["uv venv", "uv pip install", "uv pip check", "loading devmentor-qwen"])
def test_a_failure_at_any_step_leaves_the_old_release_running(host, step):
    host.install()
    host.fail = step
    with pytest.raises(ReleaseError):
        host.install(release="0.1.0-bbbbbbbbbbbb")
    assert host.releases.current("qwen") == "0.1.0-aaaaaaaaaaaa"
    host.fail = ""
    wanted = host.wanted(release="0.1.0-bbbbbbbbbbbb")
    assert host.releases.ensure(wanted).missing == []
    assert host.releases.current("qwen") == wanted.id
    assert host.leftovers() == []


def test_a_damaged_archive_is_removed_and_asked_for_again(host):
    wanted = host.wanted()
    host.copy(wanted)
    (host.root / ".store" / "incoming" / "deps-1.tar").write_bytes(b"half of it")
    with pytest.raises(ReleaseError, match="damaged"):
        host.releases.ensure(wanted)
    assert host.releases.ensure(wanted).missing == ["deps-1.tar"]


@pytest.mark.parametrize("name", ["../outside.whl", "folder/inside.whl", "/outside.whl"])
def test_an_archive_writes_nowhere_but_where_it_is_unpacked(host, name):
    wanted = host.wanted()
    host.copy(wanted)
    tar(host.root / ".store" / "incoming" / "deps-1.tar", {name: b"x"})
    with pytest.raises(ReleaseError, match="damaged"):
        host.releases.ensure(wanted)
    assert not list(host.root.rglob("*side.whl"))


def test_a_switch_that_was_not_recorded_is_done_again(host):
    host.install()
    (host.root / "qwen" / "release.json").unlink()
    assert host.releases.ensure(host.wanted()).actions == ["switch qwen to 0.1.0-aaaaaaaaaaaa"]
    assert (host.root / "qwen" / "release.json").exists()


def test_a_switch_that_cannot_be_recorded_is_not_made(host):
    host.install()
    in_the_way = host.root / "qwen" / ".release.json.new"
    in_the_way.mkdir()  # as a full disk: nothing can be written there
    with pytest.raises(OSError, match="Is a directory"):
        host.install(release="0.1.0-bbbbbbbbbbbb")
    assert host.releases.current("qwen") == "0.1.0-aaaaaaaaaaaa"
    assert host.releases.switch("qwen", "0.1.0-aaaaaaaaaaaa") == "0.1.0-aaaaaaaaaaaa"
    in_the_way.rmdir()
    host.install(release="0.1.0-bbbbbbbbbbbb")
    assert host.releases.current("qwen") == "0.1.0-bbbbbbbbbbbb"


def test_going_back_is_a_switch_and_newer_than_the_process(host):
    host.install()
    host.install(release="0.1.0-bbbbbbbbbbbb")
    marker = host.root / "qwen" / "release.json"
    before = marker.stat().st_mtime_ns
    outcome = host.releases.ensure(host.wanted())
    assert outcome.previous == "0.1.0-bbbbbbbbbbbb"
    assert outcome.actions == ["switch qwen to 0.1.0-aaaaaaaaaaaa"]
    assert marker.stat().st_mtime_ns > before


def test_the_oldest_go_unless_another_app_runs_them(host):
    names = [f"0.1.0-{letter * 12}" for letter in "abcd"]
    host.install(release=names[0], keep=2)
    host.releases.ensure(host.wanted(release=names[0], app="pbml"))
    for name in names[1:]:
        host.install(release=name, keep=2)
    assert host.releases.releases("qwen") == [names[3], names[2]]
    assert host.store() == [names[0], names[2], names[3]]


def test_wheels_nobody_was_made_from_go(host):
    host.install(keep=1)
    host.install(release="0.1.0-bbbbbbbbbbbb", deps="deps-2", keep=1)
    assert [path.name for path in (host.root / ".store" / "wheels").iterdir()] == ["deps-2"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "folder/inside"])
def test_an_archive_with_anything_but_plain_files_is_refused(host, name):
    wanted = host.wanted()
    host.copy(wanted)
    tar(host.root / ".store" / "incoming" / f"{wanted.deps}.tar", {name: b"x"})
    with pytest.raises(ReleaseError, match="not a plain file"):
        host.releases.ensure(wanted)
    assert not list(host.root.parent.rglob("outside"))


def test_a_link_in_an_archive_is_refused(host):
    wanted = host.wanted()
    host.copy(wanted)
    with tarfile.open(host.root / ".store" / "incoming" / f"{wanted.deps}.tar", "a") as bundle:
        link = tarfile.TarInfo("link.whl")
        link.type, link.linkname = tarfile.SYMTYPE, "thing.whl"
        bundle.addfile(link)
    with pytest.raises(ReleaseError, match=r"'link\.whl' is not a plain file"):
        host.releases.ensure(wanted)


def test_another_entry_point_is_loaded_and_a_set_with_gaps_is_not_checked(host):
    wanted = Wanted("vllm-engine", "0.32.0-aaaaaaaaaaaa", "deps-1", PYTHON, entry="vllm")
    host.copy(wanted)
    described = json.dumps({"id": wanted.id, "deps": wanted.deps, "whole": False}).encode()
    tar(
        host.root / ".store" / "incoming" / f"release-{wanted.id}.tar",
        {"requirements.txt": b"", "release.json": described},
    )
    host.releases.ensure(wanted)
    assert host.ran[-1][-1] == "vllm"
    assert not [command for command in host.ran if "check" in command]
    host.install(app="qwen", release="0.1.0-bbbbbbbbbbbb")
    assert [command for command in host.ran if "check" in command]
    assert host.ran[-1][-1] == "devmentor-qwen"


def test_another_python_is_refused_before_anything_is_done(host):
    wanted = Wanted("qwen", "0.1.0-aaaaaaaaaaaa", "deps-1", "2.7")
    host.copy(wanted)
    with pytest.raises(ReleaseError, match=r"made for Python 2\.7"):
        host.releases.ensure(wanted)
    assert host.ran == []


def test_a_staged_release_is_installed_and_kept_and_not_switched_to(host):
    old, new = "0.1.0-aaaaaaaaaaaa", "0.1.0-bbbbbbbbbbbb"
    host.install()
    host.copy(host.wanted(release=new))
    outcome = host.releases.ensure(host.wanted(release=new), stage=True)
    assert outcome.actions == [f"install {new}", f"stage qwen {new}"]
    assert host.releases.current("qwen") == old
    assert host.releases.ensure(host.wanted(release=new), stage=True).actions == []
    # Another app's switch prunes what nobody uses.
    host.releases.ensure(host.wanted(app="pbml"))
    assert new in host.store()
    assert host.releases.ensure(host.wanted(release=new)).actions == [f"switch qwen to {new}"]


def test_a_switch_goes_to_a_release_that_is_here_and_is_recorded(host):
    old, new = "0.1.0-aaaaaaaaaaaa", "0.1.0-bbbbbbbbbbbb"
    host.install()
    host.install(release=new)
    assert host.releases.switch("qwen", "previous", check=True) == old
    assert host.releases.current("qwen") == new
    assert host.releases.switch("qwen", "previous") == old
    assert host.releases.current("qwen") == old
    # Newer than the process: the unit restarts (decision 1), and back again is a switch like any other.
    assert json.loads((host.root / "qwen" / "release.json").read_text()) == {"app": "qwen", "id": old, "previous": new}
    assert host.releases.switch("qwen", new) == new


@pytest.mark.parametrize("to", ["previous", "0.1.0-cccccccccccc"])
def test_a_switch_to_what_is_not_here_names_what_is(host, to):
    host.install()
    with pytest.raises(ReleaseError, match=r"Here are: 0\.1\.0-aaaaaaaaaaaa"):
        host.releases.switch("qwen", to)
    assert host.releases.current("qwen") == "0.1.0-aaaaaaaaaaaa"


def test_what_a_stand_in_runs_is_never_removed(host):
    host.install(keep=1)
    (host.root / "qwen" / "surge").symlink_to("releases/0.1.0-aaaaaaaaaaaa")
    host.install(release="0.1.0-bbbbbbbbbbbb", keep=1)
    assert "0.1.0-aaaaaaaaaaaa" in host.store()
    (host.root / "qwen" / "surge").unlink()
    host.install(release="0.1.0-cccccccccccc", keep=1)
    assert host.store() == ["0.1.0-cccccccccccc"]
