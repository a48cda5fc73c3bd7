import os
from pathlib import Path
from types import SimpleNamespace

from lab import disk


def host(*pids):
    return SimpleNamespace(group=SimpleNamespace(processes=lambda: set(pids)))


def test_a_program_with_an_open_file_below_the_directory_is_named(tmp_path):
    me = Path("/proc/self/comm").read_text().strip()
    gone = 2**22 + 1  # above the largest process id
    assert disk.open_files(host(os.getpid(), gone), str(tmp_path)) == []
    with (tmp_path / "data").open("w"):
        assert disk.open_files(host(gone, os.getpid()), str(tmp_path)) == [me]
        assert disk.open_files(host(os.getpid()), str(tmp_path / "dat")) == []


def test_files_that_close_during_the_look_do_not_hide_the_others(tmp_path, monkeypatch):
    whole = Path.readlink
    with (tmp_path / "data").open("w") as data:

        def readlink(path):
            if path.name != str(data.fileno()):
                raise FileNotFoundError(path)
            return whole(path)

        monkeypatch.setattr(Path, "readlink", readlink)
        assert len(disk.open_files(host(os.getpid()), str(tmp_path))) == 1
