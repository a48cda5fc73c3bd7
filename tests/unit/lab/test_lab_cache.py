import json
import shutil

import pytest

from lab import cache, cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVMENTOR_LAB_STATE", str(tmp_path / "state"))
    root = tmp_path / "cache"
    for name, value in {"CACHE": root, "_LOCK": root / "use.lock", "_REMOVED": root / "removed"}.items():
        monkeypatch.setattr(cache, name, value)
    for name in ("rootfs/a", "rootfs/b", "rootfs/c.partial"):
        (root / name).mkdir(parents=True)
    for name, below in (("low", []), ("middle", ["low"]), ("top", ["middle", "low"])):
        layer(root / "baked/a" / name, below)
    layer(root / "baked/b/only", [])
    return root


def layer(path, below):
    (path / "upper/usr").mkdir(parents=True)
    (path / "layer.json").write_text(json.dumps({"packages": [], "below": below}))


def left(root):
    return {str(path.relative_to(root)) for pattern in ("rootfs/*", "baked/*/*") for path in root.glob(pattern)}


def use(tmp_path, *layers):
    record = tmp_path / "state/0123abcd/lab.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"inventory": "/i", "hosts": {"a": {"index": 0, "lower": [str(p) for p in layers]}}}))


def test_what_a_lab_stands_on_stays_and_the_rest_goes(folder, tmp_path):
    use(tmp_path, folder / "baked/a/middle/upper", folder / "baked/a/low/upper", folder / "rootfs/a")
    removed = {str(path.relative_to(folder)) for path in cache.prune()}
    assert removed == {"baked/a/top", "baked/b/only", "rootfs/b", "rootfs/c.partial"}
    assert left(folder) == {"baked/a/middle", "baked/a/low", "rootfs/a"}
    assert not (folder / "removed").exists()
    assert cache.prune() == []


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_prune_leaves_whole_things_that_stand_on_whole_things(folder, after, monkeypatch):
    whole = type(folder).rename
    renamed = []

    def rename(path, target):
        if len(renamed) == after:
            raise KeyboardInterrupt
        renamed.append(path)
        return whole(path, target)

    def half(path):
        (path / "0").rename(path / "half")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(folder), "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        cache.prune()
    monkeypatch.undo()
    for path in folder.glob("baked/*/*"):
        assert (path / "upper/usr").is_dir()
        assert (folder / "rootfs" / path.parent.name).is_dir()
        assert all((path.parent / name).is_dir() for name in json.loads((path / "layer.json").read_text())["below"])


def test_the_next_prune_finishes_an_interrupted_one(folder):
    (folder / "removed/0/usr").mkdir(parents=True)
    cache.prune()
    assert not (folder / "removed").exists()
    assert left(folder) == set()


def test_a_bake_keeps_prune_away(monkeypatch):
    held = []

    class Held:
        def __enter__(self):
            held.append(True)

        def __exit__(self, *_error):
            held.pop()

    class Lab:
        def layers(self, suite, layer):
            assert held == [True]
            return [f"/cache/{suite}/{layer}"]

    monkeypatch.setattr(cli, "cache_in_use", Held)
    assert cli._bake(Lab(), cli._parser().parse_args(["bake"])) == 0
    assert held == []
