"""What a roll says where a host was lost: by then every other one has failed, and Ansible's list of hosts is empty."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = """
- hosts: all
  gather_facts: false
  any_errors_fatal: false
  vars:
    rollout_step: {tier: qwen, host: lost, mode: slot}
    # Known in a roll's earlier tasks.
    __rollout_reached: true
    __rollout_tier: {app: qwen, backend: qwen}
  vars_files: ["{{ root }}/roles/rollout/vars/main.yml"]
  tasks:
    - block:
        - include_tasks: step.yml
      always:
        - ping:
"""
STEP = """
- block:
    - block:
        - ping:
          # One way to fail with the lost host and to stay out of ansible_play_hosts though rescued.
          any_errors_fatal: true
      rescue:
        - ping:
    - fail: {msg: together}
      when: __rollout_missing
  rescue:
"""
INVENTORY = """
all:
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  hosts:
    a: {ansible_connection: local}
    b: {ansible_connection: local}
    lost: {ansible_host: 127.0.0.1, ansible_port: 1}
"""


def rescue() -> str:
    """The end of step.yml as it is, without what puts things right."""
    text = (ROOT / "roles" / "rollout" / "tasks" / "step.yml").read_text()
    kept = text.partition("\n  rescue:\n")[2].split("\n\n")
    return "\n\n".join(task for task in kept if "go_back.yml" not in task)


def test_one_host_says_which_one_was_lost_and_the_others_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "step.yml").write_text(STEP + rescue())
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), "-e", f"root={ROOT}", str(tmp_path / "play.yml")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": "", "ANSIBLE_STDOUT_CALLBACK": "default"},
    )  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "The roll stopped at qwen on lost: lost is lost: it does not answer any more. The others serve" in said, said
    assert 'fatal: [b]: FAILED! => {"changed": false, "msg": "See a."}' in said, said
