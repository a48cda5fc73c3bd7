"""Faults of a host's spool and of its local state. A host that is cut off from the poolers is without PostgreSQL."""

from __future__ import annotations

import time

from lab import disk
from lab.errors import LabError
from tests.chaos.pbml.replicas import WORKER as WORKER_PORT
from tests.chaos.pbml.scene import API, WORKER, Scene
from tests.chaos.postgres.agents import port

SPOOL, STATE = "/var/lib/devmentor/pbml/spool", "/var/lib/devmentor/pbml/state"
DEPLOYED = {
    "pbml_spool_dir": SPOOL,
    "pbml_state_dir": STATE,
    # The disk itself is to be full, not a bound above it.
    "pbml_spool_min_free_mib": 0,
    # More than one within a few minutes.
    "pbml_state_checkpoint_minutes": 1,
}
"""Role variables of the mode with both."""

_SPOOL_MIB = 0.25
_CUT = (
    "nft add table inet chaos && nft add chain inet chaos out '{{ type filter hook output priority 0; }}'"
    " && nft add rule inet chaos out tcp dport {port} reject with tcp reset"
)
_DAMAGE = """
set -eu
systemctl stop {worker}
cd {state}
newest=$(ls checkpoints/*.db | sort | tail -n 1)
# The log beside the file would heal the file's beginning.
rm -f current/state.db-wal current/state.db-shm
for file in "$newest" current/state.db; do
  head -c 65536 /dev/urandom | dd of="$file" bs=65536 conv=notrunc status=none
done
"""
_LATE, _FIRST = 12, 6
_BACK_S = 120


def cut_off(scene: Scene) -> None:
    """No pooler can be reached from the victim."""
    scene.host.execute(["sh", "-c", _CUT.format(port=port("pgbouncer"))])


def reconnect(scene: Scene) -> None:
    scene.host.execute(["nft", "delete", "table", "inet", "chaos"], check=False)


def fill_spool(scene: Scene) -> None:
    """The spool gets a disk of its own the first time: its API is stopped for that, its clients must be back first."""
    if SPOOL in disk.volumes(scene.host):
        disk.fill(scene.host, SPOOL, free_mib=_SPOOL_MIB)
    else:
        scene.host.execute(["systemctl", "stop", API])
        try:
            disk.fill(scene.host, SPOOL, free_mib=_SPOOL_MIB)
        finally:
            scene.host.execute(["systemctl", "start", API])
        wait_for_clients(scene)
    if "full" not in scene.before:
        scene.before["full"] = scene.counted("", "pbml_spool_refused_total", reason="full")
    cut_off(scene)


def wait_for_clients(scene: Scene) -> None:
    """The gateways send a host that was away nothing before it has answered 30 probes. Raises LabError."""
    deadline = time.monotonic() + _BACK_S
    turns = {"service": "pbml", "route": "/v1/turns", "method": "POST", "code": "202"}
    while not scene.counted("", "devmentor_http_requests_total", **turns):
        if time.monotonic() > deadline:
            raise LabError(f"{scene.victim} has had no write in {_BACK_S} s", "look at the gateways' statistics")
        time.sleep(1)


def empty_spool(scene: Scene) -> None:
    """PostgreSQL comes back while the disk is still full: the replay must get on with that."""
    reconnect(scene)
    time.sleep(3)
    if SPOOL in disk.volumes(scene.host):
        disk.unfill(scene.host, SPOOL)


def spool_was_full(scene: Scene) -> str:
    count = scene.counted("full", "pbml_spool_refused_total", reason="full")
    scene.notes["refused_full"] = count
    return "" if count > 0 else f"the spool of {scene.victim} was never full"


def spool_two_ways(scene: Scene) -> None:
    """Of some documents the spooled version is the older one, of the others the newer one."""
    if "late" not in scene.before:
        scene.before["late"] = scene.counted("", "pbml_spool_replayed_total", result="superseded")
    cut_off(scene)
    for _ in range(_LATE):
        _spooled_and(scene, spooled_first=True)
    for _ in range(_FIRST):
        _spooled_and(scene, spooled_first=False)


def _spooled_and(scene: Scene, *, spooled_first: bool) -> None:
    subject = f"{scene.run}-late-{scene.chance.randrange(16**8):08x}"
    names = [scene.victim, scene.chance.choice(scene.others)]
    for name in names if spooled_first else reversed(names):
        write = scene.write(name, subject)
        if name == scene.victim and not write.local:
            raise LabError(f"{scene.victim}, which has no PostgreSQL, did not spool {subject}: {write.detail}")


def spool_was_late(scene: Scene) -> str:
    count = scene.counted("late", "pbml_spool_replayed_total", result="superseded")
    scene.notes["superseded_at_replay"] = count
    return "" if count >= _LATE else f"{count:.0f} spooled versions of {scene.victim} came too late, not {_LATE}"


def damage_state(scene: Scene) -> None:
    """The file in use and the newest checkpoint, with the worker down. The API reads what it finds."""
    scene.host.execute(["sh", "-c", _DAMAGE.format(worker=WORKER, state=STATE)])


def start_worker(scene: Scene) -> None:
    scene.host.execute(["systemctl", "start", WORKER], check=False)


def state_came_back(scene: Scene) -> str:
    """By an older checkpoint, or from PostgreSQL; the metrics say which."""
    found = scene.platform.replicas.metrics(scene.victim, WORKER_PORT) or {}
    seconds = {
        dict(labels)["source"]: took for (name, labels), took in found.items() if name == "pbml_state_start_seconds"
    }
    damaged = scene.counted("", "pbml_state_checkpoints_total", WORKER_PORT, result="damaged")
    scene.notes["state_from"] = {source: round(took, 2) for source, took in seconds.items()}
    if not damaged:
        return f"{scene.victim} does not count a damaged checkpoint"
    return "" if seconds and "file" not in seconds else f"{scene.victim} came back from {sorted(seconds) or 'nothing'}"
