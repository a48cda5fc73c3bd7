"""Bad input that only hosts give away: real runs of ansible-playbook against the running lab.

Each must end with one line that names host, thing and remedy, and leave every host as it was. The inventory comes from
DEVMENTOR_INVENTORY; what inventory and variables alone give away is in tests/unit/preflight/test_bad_input.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tools.lab_run import prepare
from tools.runs import Run, lab, playbook

pytestmark = pytest.mark.lab

PROBLEM = re.compile(r"^\s*(all hosts|\S+): (.+?): (.+)\. Remedy: (.+)\.$")


def problems(done: Run) -> list[str]:
    """The lines of preflight's message; Ansible prints a failure twice."""
    return list(dict.fromkeys(line.strip() for line in done.output.splitlines() if PROBLEM.match(line)))


def only(done: Run) -> str:
    assert done.status != 0, done.output
    assert not done.changed(), done.output
    found = problems(done)
    assert len(found) == 1, done.output
    return found[0]


@pytest.fixture(scope="module")
def running(hosts: Path) -> Path:
    """The lab's hosts, up. After test_platform.py the platform is on them; alone, these tests do with bare hosts."""
    lab(hosts, "up").require()
    prepare(hosts, show=False)
    return hosts


def members(inventory: Path) -> list[str]:
    groups = yaml.safe_load((inventory / "hosts.yml").read_text())["all"]["children"]
    offline = set((groups.get("offline") or {}).get("hosts") or {})
    return [host for host in groups["lab"]["hosts"] if host not in offline]


def digest(inventory: Path, host: str) -> str:
    """What a deployment would change on a host: configuration, software, packages, what starts at boot."""
    script = (
        # PgBouncer's targets are the agent's: it takes a replica that is off out of the readers' list, and back in.
        "find /etc /opt -xdev -type f -not -name adjtime -not -path /etc/pgbouncer/targets.ini -print0 |"
        " sort -z | xargs -0 sha256sum; dpkg-query -W;"
        # What is done or was never started by itself comes and goes (timers, logins): the platform's services do not.
        "systemctl list-unit-files --plain --no-legend --state=enabled | sort"
    )
    answer = lab(inventory, "exec", host, "--", "sh", "-c", script).require()
    return hashlib.sha256(answer.output.encode()).hexdigest()


@pytest.fixture
def unchanged(running: Path) -> Iterator[Path]:
    """Fails the test if a host is not afterwards what it was before."""
    before = {host: digest(running, host) for host in members(running)}
    yield running
    after = {host: digest(running, host) for host in members(running)}
    assert after == before


def test_a_host_that_is_down_is_named_and_the_others_are_still_asked(unchanged: Path) -> None:
    host = members(unchanged)[-1]
    lab(unchanged, "kill", host).require()
    try:
        message = only(playbook("site", unchanged, timeout=300))
    finally:
        lab(unchanged, "start", host).require()
    assert message.startswith(f"{host}: ansible_host: is not reachable by SSH")
    assert f"--limit 'all:!{host}'" in message


def test_a_full_disk_on_one_host(unchanged: Path) -> None:
    host = members(unchanged)[1]
    # A folder of its own: a filled one that services use would need them to recover, which is not this test's matter.
    lab(unchanged, "exec", host, "--", "mkdir", "-p", "/srv/full").require()
    lab(unchanged, "fill", host, "/srv/full").require()
    disks = '{"devmentor_disk_minimum": [{"path": "/", "free_gib": 0.1}, {"path": "/srv/full", "free_gib": 0.5}]}'
    try:
        message = only(playbook("site", unchanged, "-e", disks, timeout=300))
    finally:
        lab(unchanged, "fill", "--undo", host, "/srv/full").require()
    assert message.startswith(f"{host}: disk /srv/full: 0.00 GiB are free, 0.5 are needed. Remedy: free space there")


def test_minima_above_the_machine(unchanged: Path) -> None:
    run = playbook("site", unchanged, "-e", '{"devmentor_resource_scale": 1.0}', timeout=300)
    assert run.status != 0
    assert not run.changed()
    found = [line for line in problems(run) if ": devmentor_resources: the minima of " in line]
    for host in members(unchanged):
        # Hosts with the same finding share a line.
        assert any(host in line.split(": ")[0].split(",") and "cores, the host has" in line for line in found), found
    assert all("lower devmentor_resource_scale" in line for line in found)


def test_a_port_that_something_else_holds(unchanged: Path) -> None:
    host = members(unchanged)[0]
    # A port of no tier: so it makes no difference whether the platform is deployed.
    listen = "import socket,time;s=socket.create_server(('0.0.0.0',23456));time.sleep(60)"
    lab(unchanged, "exec", host, "--", "sh", "-c", f'nohup python3 -c "{listen}" >/dev/null 2>&1 & sleep 1').require()
    matrix = '{"devmentor_communication_matrix": [{"to": "all", "ports": ["probe"], "from": ["any"]}],'
    run = playbook("preflight", unchanged, "-e", matrix + ' "devmentor_ports": {"probe": 23456}}', timeout=300)
    assert only(run).startswith(f"{host}: port 23456/tcp (probe): is held by python3 (pid ")
