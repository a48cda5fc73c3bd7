"""The lab on real hosts: isolation, power, faults, and that nothing of it stays behind. About two minutes."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.host import CHECKOUT
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.names import Names, lab_identity
from lab.progress import Silent
from lab.state import state_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")

THREE = """
all:
  hosts:
    a1: {lab_memory_mib: 400}
    a2:
    old: {lab_suite: bookworm}
    spare: {lab_autostart: false}
"""


@dataclass
class Bench:
    """A lab driven by its command line, as a person would."""

    inventory: Path

    @property
    def identity(self) -> str:
        return lab_identity(CHECKOUT, read_inventory(self.inventory).file)

    @property
    def variables(self) -> dict[str, object]:
        return yaml.safe_load((self.inventory / "group_vars/all/lab.generated.yml").read_text())

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lab", "--inventory", str(self.inventory), *words]

    def lab(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(self.command(*words), cwd=CHECKOUT, capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout + done.stderr

    def exec(self, host: str, script: str, status: int = 0) -> str:
        """A shell script inside a host, by the library: a Python start per command would double the tests' time."""
        done = Lab(read_inventory(self.inventory), Silent()).host(host).execute(["sh", "-c", script], check=False)
        assert done.returncode == status, f"{host}: {script}: {done.returncode}: {done.stderr}{done.stdout}"
        return (done.stdout + done.stderr).strip()

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in json.loads(self.lab("status", "--json"))}

    def ssh(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        values = self.variables
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=3"]
        known = ["-o", f"UserKnownHostsFile={values['lab_known_hosts']}", "-i", values["lab_ssh_key"]]
        address = values["lab_addresses"][host]
        return subprocess.run(
            ["ssh", *options, *known, f"root@{address}", command], capture_output=True, text=True, timeout=30
        )


def traces(identity: str) -> set[str]:
    """Everything on the machine that carries a lab's identity, found without asking the lab."""
    found = {f"link {name}" for name in os.listdir("/sys/class/net") if identity in name}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line.split()[4]}" for line in mounts if identity in line}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    found |= {f"nft {line}" for line in tables.splitlines() if identity in line}
    for folder, folders, _files in os.walk("/sys/fs/cgroup"):
        found |= {f"cgroup {folder}/{name}" for name in folders if identity in name}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if ") Z " in (entry / "stat").read_text():
                    continue  # dead, its parent has not looked yet
                text = (entry / "cmdline").read_text(errors="replace") + (entry / "cgroup").read_text()
            except OSError:
                continue
            if identity in text:
                found.add(f"process {entry.name}")
    found |= {f"runtime {path}" for path in Path("/run").rglob(f"*{identity}*")}
    return found | {f"state {path}" for path in state_root().glob(f"*{identity}*")}


def remains(identity: str) -> set[str]:
    """What is left of a lab that was taken down, once the machine's init has collected the dead processes."""
    deadline = time.monotonic() + 10
    while (found := traces(identity)) and kinds(found) == {"process"} and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def kinds(found: set[str]) -> set[str]:
    return {item.split()[0] for item in found}


def make(folder: Path, text: str) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.yml").write_text(text)
    return Bench(folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = make(tmp_path_factory.mktemp("lab") / "inventory", THREE)
    assert remains(bench.identity) == set()
    try:
        bench.lab("up")
        yield bench
    finally:
        bench.lab("down")
    assert remains(bench.identity) == set()
    assert not (bench.inventory / "group_vars/all/lab.generated.yml").exists()


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


def test_a_power_cut_keeps_the_disk_and_sends_no_farewell(bench: Bench) -> None:
    """A peer's connection stays open after the cut: neither FIN nor RST reached it."""
    bench.exec("a1", "echo kept > /var/tmp/kept; echo lost > /run/lost")
    listen = "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); c.send(b'x'); c.recv(1)"
    peer = (
        "import socket, time\n"
        "c = socket.create_connection(('{}', 7000), 5); c.recv(1); print('connected', flush=True); c.settimeout(4)\n"
        "try: print('ended' if c.recv(1) == b'' else 'data')\n"
        "except TimeoutError: print('silence')\n"
        "except ConnectionError: print('reset')\n"
    ).format(bench.variables["lab_addresses"]["a1"])
    bench.exec("a1", f'systemd-run --quiet --unit=talk python3 -c "{listen}"')
    bench.exec("a1", "until ss -ltn | grep -q :7000; do sleep 0.1; done")
    command = bench.command("exec", "a2", "--", "python3", "-c", peer)
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().strip() == "connected"
        bench.lab("kill", "a1")
        assert watch.stdout.readline().strip() == "silence"
    assert bench.states()["a1"] == "off"
    assert "not running" in bench.lab("exec", "a1", "true", status=1)
    bench.lab("start", "a1")
    assert bench.exec("a1", "cat /var/tmp/kept") == "kept"
    bench.exec("a1", "test -e /run/lost", status=1)
    assert bench.exec("a1", "systemctl is-system-running --wait") == "running"


def test_reboot_and_clean_stop(bench: Bench) -> None:
    bench.exec("old", "echo lost > /run/lost; echo kept > /var/tmp/kept")
    bench.lab("reboot", "old")
    bench.exec("old", "test -e /run/lost", status=1)
    assert bench.exec("old", "cat /var/tmp/kept") == "kept"
    bench.lab("stop", "old")
    assert bench.states()["old"] == "off"
    bench.lab("start", "old")
    assert "ended with status 133" in bench.lab("console", "old")


def test_a_frozen_host_stands_still_and_runs_on(bench: Bench) -> None:
    bench.exec("a2", "systemd-run --quiet --unit=count sh -c 'while :; do date +%s%N > /run/count; sleep 0.05; done'")
    init = bench.exec("a2", "until [ -s /run/count ]; do sleep 0.1; done; cat /run/count")
    bench.lab("freeze", "a2")
    try:
        assert bench.states()["a2"] == "frozen"
        assert bench.ssh("a2", "true").returncode == 255
        assert "lab thaw a2" in bench.lab("exec", "a2", "true", status=1)
    finally:
        bench.lab("thaw", "a2")
    bench.exec("a2", f"until [ $(cat /run/count) -gt {init} ] 2>/dev/null; do sleep 0.1; done")
    bench.lab("freeze", "a2")
    bench.lab("kill", "a2")
    bench.lab("start", "a2")  # and the power may go while it stands still
    assert bench.exec("a2", "systemctl is-system-running --wait") == "running"


def reaches(bench: Bench, source: str, target: str) -> bool:
    """Whether datagrams of one host arrive at another: unlike ping, this sees one direction alone."""
    address = bench.variables["lab_addresses"][target]
    receive = (
        "import socket; s = socket.socket(2, 2); s.bind(('', 7001)); print('ready', flush=True)\n"
        "s.settimeout(8); s.recv(9)"
    )
    send = (
        "import socket, time; s = socket.socket(2, 2)\n"
        f"for _ in range(10): s.sendto(b'x', ('{address}', 7001)); time.sleep(0.1)"
    )

    lab = Lab(read_inventory(bench.inventory), Silent())
    command = lab.host(target).enter_command(["python3", "-c", receive])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"ready\n"
        lab.host(source).execute(["python3", "-c", send])
        # It ends by its own timeout: killed from here, it would go on inside the host and hold the port.
        return receiver.wait() == 0


def test_cut_in_one_direction_and_heal(bench: Bench) -> None:
    bench.lab("cut", "a1", "a2", "--one-way")
    try:
        assert not reaches(bench, "a1", "a2")
        assert reaches(bench, "a2", "a1")
        assert "a1 -x-> a2" in bench.lab("status")
        assert bench.ssh("a1", "true").returncode == 0
    finally:
        bench.lab("heal")
    assert reaches(bench, "a1", "a2")


def test_a_host_cut_off_from_everything_or_from_its_peers_only(bench: Bench) -> None:
    try:
        bench.lab("cut", "a1", "--keep-control")
        bench.exec("a2", "ping -c1 -W1 a1", status=1)
        assert bench.ssh("a1", "true").returncode == 0
        bench.lab("cut", "a1")
        assert bench.ssh("a1", "true").returncode == 255
        assert bench.exec("a1", "cat /sys/class/net/host0/carrier") == "1"
    finally:
        bench.lab("heal")
    bench.exec("a2", "ping -c1 -W2 a1")


def test_a_full_disk_survives_a_power_cut_and_can_be_undone(bench: Bench) -> None:
    write = "dd if=/dev/zero of=/srv/data/new bs=1M count=4 2>&1"
    bench.exec("a2", "mkdir /srv/data && echo old > /srv/data/old && chown daemon /srv/data && chmod 750 /srv/data")
    bench.exec("a2", "systemd-run --quiet --unit=writer sh -c 'exec 3> /srv/data/open; sleep 600'")
    bench.exec("a2", "until [ -e /srv/data/open ]; do sleep 0.1; done")
    assert "go on writing to the old disk" in bench.lab("fill", "a2", "/srv/data", status=1)
    bench.exec("a2", "systemctl stop writer")
    bench.lab("fill", "a2", "/srv/data", "--free-mib", "1")
    assert "No space left on device" in bench.exec("a2", write, status=1)
    assert bench.exec("a2", "cat /srv/data/old; stat -c '%U %a' /srv/data") == "old\ndaemon 750"
    bench.lab("kill", "a2")
    bench.lab("start", "a2")
    assert bench.exec("a2", "cat /srv/data/old") == "old"
    assert "No space left on device" in bench.exec("a2", write, status=1)
    bench.lab("fill", "a2", "/srv/data", "--undo")
    bench.exec("a2", write)
    assert "was not filled" in bench.lab("fill", "a2", "/var/lib", "--undo", status=1)


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


def kill_up(bench: Bench, kind: str, delay: float) -> None:
    """Start `up` and SIGKILL it a moment after the first trace of a kind (link, mount, ...) is on the machine."""
    process = subprocess.Popen(bench.command("up"), cwd=CHECKOUT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while kind not in kinds(traces(bench.identity)):
            assert process.poll() is None, f"up ended before there was a {kind}"
            assert time.monotonic() < deadline
        time.sleep(delay)
    finally:
        process.kill()
        process.wait()


def test_up_killed_at_any_moment_is_resumed_or_removed(bench: Bench, tmp_path: Path) -> None:
    """`bench` has the root file systems made, so that the moments fall into bridge, disks, boot and waiting."""
    crashed = make(tmp_path / "inventory", "all: {hosts: {c1: , c2: }}\n")
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    try:
        for kind in ("state", "link", "nft", "cgroup", "mount"):
            delay = moments.uniform(0, 0.4)
            kill_up(crashed, kind, delay)
            crashed.lab("down")
            assert remains(crashed.identity) == set(), f"killed {delay:.3f} s after the first {kind} (seed {seed})"
        kill_up(crashed, "mount", 0)
        crashed.lab("up")
        assert crashed.states() == {"c1": "running", "c2": "running"}
    finally:
        crashed.lab("down")
    assert remains(crashed.identity) == set()


def test_a_killed_build_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    """Root file systems and layers are built in namespaces that end with the lab command, however that ends."""
    mark = f"{time.time_ns()}"
    (tmp_path / "mnt").mkdir()
    script = f"mount -t tmpfs build-{mark} {tmp_path}/mnt; setsid sleep {mark} & setsid sleep {mark}"
    program = (
        "import pathlib, sys; from lab.proc import run_contained\n"
        f"run_contained(['sh', '-c', sys.argv[1]], log=pathlib.Path('{tmp_path}/log'), what='a build')"
    )
    builder = subprocess.Popen([sys.executable, "-c", program, script], cwd=CHECKOUT)

    def sleepers() -> int:
        listing = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True).stdout
        return listing.splitlines().count(f"sleep {mark}")

    def becomes(count: int) -> bool:
        deadline = time.monotonic() + 10
        while sleepers() != count and time.monotonic() < deadline:
            time.sleep(0.05)
        return sleepers() == count

    try:
        assert becomes(2), "the build never ran"
    finally:
        builder.kill()
        builder.wait()
    assert becomes(0), "the build's processes outlive it"
    assert f"build-{mark}" not in Path("/proc/self/mountinfo").read_text()


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
