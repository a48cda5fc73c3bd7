"""The lab's faults on real hosts: power, network, full disks, and a lab command that is killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from lab.host import CHECKOUT
from lab.inventory import read_inventory
from lab.lifecycle import Lab
from lab.progress import Silent
from tests.integration.lab_bench import Bench, kinds, make, needs_root, remains, traces

pytestmark = needs_root


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
