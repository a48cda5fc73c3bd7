"""What the chaos run does to a host's state is what it says: neither the file nor the newest checkpoint can be used."""

import os
import subprocess

import pytest

from devmentor.pbml.state import checkpoint, place
from devmentor.pbml.state.files import CHECKPOINT, POSTGRES, Files
from tests.chaos.pbml import local_faults


def damage(directory, tmp_path):
    """The fault's own script; there is no unit to stop."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "systemctl").write_text("#!/bin/sh\n")
    (programs / "systemctl").chmod(0o755)
    script = local_faults._DAMAGE.format(worker="pbml-worker", state=directory)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script], check=True, env=environment)


@pytest.mark.parametrize(("checkpoints", "origin"), [(2, CHECKPOINT), (1, POSTGRES)])
def test_an_older_checkpoint_or_postgresql_is_taken(tmp_path, checkpoints, origin):
    directory = tmp_path / "state"
    files = Files(directory)
    file = files.open()
    with file.writing():
        file.note(loaded="1")
    for _ in range(checkpoints):
        checkpoint.write(file, directory / place.CHECKPOINTS, 3)
    file.close()
    damage(directory, tmp_path)
    again = Files(directory)
    came = again.open()
    try:
        assert again.origin == origin
        assert (came.meta("loaded") is not None) == (origin == CHECKPOINT)
    finally:
        came.close()
