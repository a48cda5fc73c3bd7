"""A host that cannot go back to the release before: that is said, and it stays out though its gate passes."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = """
- hosts: h
  gather_facts: false
  vars:
    rollout_step: {tier: qwen, host: h, mode: drained}
    rollout_verb: update
    devmentor_release_dir: "{{ folder }}/releases"
    rollout_gate_deadline_seconds: 5
  vars_files: ["{{ root }}/roles/rollout/vars/main.yml"]
  tasks:
    - set_fact: # known in a roll's earlier tasks
        __rollout_alive: qwen on h
        __rollout_reached: drained
        __rollout_not_back: ""
        __rollout_before: [before, older]
        __rollout_tier:
          app: qwen
          more_apps: {engine: program}
          backend: qwen
          units: []
          gate: [{name: port, type: tcp, host: 127.0.0.1, port: "{{ listens }}"}]
        __rollout_tls: {}
        __rollout_broken: its gate failed
    - include_tasks: go_back.yml
    - debug: {msg: "serves={{ __rollout_serves }} {{ __rollout_stopped }}"}
"""
INVENTORY = """
all:
  hosts: {h: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}}
  children: {qwen: {hosts: {h: }}}
"""


def tasks(name: str) -> str:
    """The role's, without those for the journal, whose keepers are not there."""
    kept = (ROOT / "roles" / "rollout" / "tasks" / name).read_text().split("\n\n")
    return "\n\n".join(task for task in kept if "record.yml" not in task and "rollout_journal" not in task)


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_it_is_said_and_the_host_stays_out(tmp_path: Path, open_port: int) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    (tmp_path / "go_back.yml").write_text(tasks("go_back.yml"))
    (tmp_path / "release_back.yml").write_text(tasks("release_back.yml"))
    given = ["-e", f"root={ROOT}", "-e", f"folder={tmp_path}", "-e", f"listens={open_port}"]
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), *given, str(tmp_path / "play.yml")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "default"},
    )  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert "serves=False The roll stopped at qwen on h: its gate failed. It could not go back (qwen: " in said, said
    reasons = said.partition("It could not go back")[2]
    assert "qwen: there is no release before." in reasons, "what the tier is named for"
    assert "engine: there is no release older." in reasons, "and what goes back with it, each to its own"
    assert "and stays out; the others serve." in said, said
