"""The lab on real hosts: each a machine of its own that the others leave alone."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from lab.host import CHECKOUT
from lab.names import Names
from tests.integration.lab_bench import Bench, kinds, make, needs_root, remains, traces

pytestmark = needs_root


def test_up_starts_what_is_wanted_and_a_second_up_nothing(bench: Bench) -> None:
    assert bench.states() == {"a1": "running", "a2": "running", "old": "running", "spare": "absent"}
    init = bench.exec("a1", "stat -c %Y /proc/1")
    assert "all running" in bench.lab("up")
    assert bench.exec("a1", "stat -c %Y /proc/1") == init
    assert kinds(traces(bench.identity)) == {"link", "mount", "nft", "cgroup", "process", "runtime", "state"}


def test_debian_releases_by_name_and_systemd_without_failures(bench: Bench) -> None:
    for host, release in (("a1", "trixie"), ("old", "bookworm")):
        assert f"VERSION_CODENAME={release}" in bench.exec(host, "cat /etc/os-release")
        assert bench.exec(host, "systemctl is-system-running --wait") == "running"


def test_hosts_have_their_own_identity_and_know_each_other(bench: Bench) -> None:
    machine_ids = {bench.exec(host, "cat /etc/machine-id") for host in ("a1", "a2", "old")}
    assert len(machine_ids) == 3
    values = bench.variables
    assert len(set(values["lab_addresses"].values())) == 4
    assert bench.exec("a1", "getent hosts old").split()[0] == values["lab_addresses"]["old"]
    assert Path(values["lab_ssh_key"]).stat().st_mode & 0o777 == 0o600


def test_ssh_checks_the_host_key(bench: Bench) -> None:
    assert bench.ssh("a1", "hostname").stdout.strip() == "a1"
    known = Path(bench.variables["lab_known_hosts"])
    good = known.read_text()
    try:
        keys = [line.split()[2] for line in good.splitlines()]
        known.write_text(good.replace(keys[0], keys[1]))
        refused = bench.ssh("a1", "hostname")
        assert refused.returncode == 255
        assert "IDENTIFICATION HAS CHANGED" in refused.stderr
    finally:
        known.write_text(good)


def test_exec_passes_the_exit_status_and_stays_inside_the_host(bench: Bench) -> None:
    bench.lab("exec", "a1", "--", "sh", "-c", "exit 7", status=7)
    assert bench.identity in _cgroup_of(bench, "a1", "sleep 61")


def _cgroup_of(bench: Bench, host: str, command: str) -> str:
    """The machine's view of the control groups of a command that runs in a host by exec."""
    with subprocess.Popen(bench.command("exec", host, "--", *command.split()), cwd=CHECKOUT) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                for entry in Path("/proc").iterdir():
                    if entry.name.isdigit():
                        try:
                            words = (entry / "cmdline").read_bytes().split(b"\0")
                            groups = (entry / "cgroup").read_text()
                        except OSError:
                            continue
                        if words[:2] == [word.encode() for word in command.split()] and bench.identity in groups:
                            return groups
                time.sleep(0.05)
        finally:
            process.kill()
    return ""


def test_hosts_reach_the_package_archive(bench: Bench) -> None:
    output = bench.exec("a1", "apt-get update 2>&1")
    assert not re.search(r"^(Err|W|E):", output, re.MULTILINE), output


def test_killing_a_unit_on_one_host_leaves_its_namesake_on_another_alone(bench: Bench) -> None:
    for host in ("a1", "a2", "old"):
        bench.exec(host, "systemd-run --quiet --unit=victim sleep 600")
    before = bench.exec("a2", "systemctl show -P MainPID victim"), bench.exec("old", "systemctl show -P MainPID victim")
    bench.exec("a1", "systemctl kill --signal=KILL victim; while systemctl -q is-active victim; do sleep 0.1; done")
    assert bench.exec("a1", "systemctl is-active victim", status=3) == "failed"
    after = bench.exec("a2", "systemctl show -P MainPID victim"), bench.exec("old", "systemctl show -P MainPID victim")
    assert after == before
    assert "0" not in after
    for host in ("a2", "old"):
        bench.exec(host, "systemctl is-active victim && systemctl stop victim")


def test_the_memory_limit_of_a_host_acts(bench: Bench) -> None:
    grab = "python3 -c 'x = bytearray({} * 2**20); print(len(x))'"
    bench.exec("a2", grab.format(600))
    bench.exec("a1", grab.format(600), status=137)
    assert bench.states()["a1"] == "running"


def test_a_removed_host_comes_back_as_another_machine(bench: Bench) -> None:
    before = bench.exec("old", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    bench.lab("down", "--limit", "old")
    assert bench.states()["old"] == "absent"
    bench.lab("start", "old")
    after = bench.exec("old", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    assert not set(after.splitlines()) & set(before.splitlines())
    assert bench.ssh("old", "true").returncode == 0


def test_two_labs_side_by_side_do_not_meet(bench: Bench, tmp_path: Path) -> None:
    second = make(tmp_path / "inventory", "all: {hosts: {a1: , b1: {lab_autostart: false}}}\n")
    try:
        second.lab("up")
        assert second.variables["lab_network"] != bench.variables["lab_network"]
        assert second.exec("a1", "hostname") == bench.exec("a1", "hostname") == "a1"
        second.exec("a1", "touch /srv/second")
        bench.exec("a1", "test -e /srv/second", status=1)
        second.lab("cut", "a1")
        assert bench.ssh("a1", "true").returncode == 0
    finally:
        second.lab("down")
    assert remains(second.identity) == set()
    assert bench.states()["a1"] == "running"
    assert bench.ssh("a1", "true").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exec", "spar", "true"], "did you mean `spare`?"),
        (["exec", "a1"], "no command given"),
        (["fill", "a1", "/"], "cannot be filled"),
        (["exec", "spare", "true"], "is not running"),
        (["up", "--limit", "a1", "--layer", "baked"], ""),
    ],
)
def test_mistakes_get_one_clear_line(bench: Bench, words: list[str], message: str) -> None:
    if words[0] == "up":
        assert "all running" in bench.lab(*words)  # a running host is left alone, whatever is asked
        return
    output = bench.lab(*words, status=1)
    assert message in output
    assert "Traceback" not in output


def test_names_are_short_enough_for_the_kernel(bench: Bench) -> None:
    assert len(Names(bench.identity).interface(199)) <= 15
