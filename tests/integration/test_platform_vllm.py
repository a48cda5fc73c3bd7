"""A platform that has one more host, whose engine is vLLM (the CPU build, on Debian 12), rolled as GPU hosts are.

Heavy: a platform of its own, 630 MB to copy, 2.5 GB on the host's disk, 3 GB of its memory; and pip has to find
PyTorch's CPU wheel (docs/vllm.md).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.bench.rolling import serving
from tests.chaos.qwen.deployed import Deployed
from tests.integration.conftest import KEEP
from tests.integration.test_platform_rollout import Asking, on, source
from tools.lab_run import deploy, prepare
from tools.runs import ROOT, Run, lab, playbook

pytestmark = [pytest.mark.lab, pytest.mark.long]

HOST = "vllm1"
FOLDER = ROOT / ".cache" / "vllm-inventory"
# The process gives its engine no time: it ends with an error, as one does whose engine cannot start.
NEVER_READY = """

def _wait_until_ready(*_):
    return False
"""


def with_vllm(inventory: Path, folder: Path) -> Path:
    """The inventory with a host more, which has the engine that the role's molecule scenario has."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        inventory / "group_vars", folder / "group_vars", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("lab.generated.yml", "vault.yml"),
    )  # fmt: skip
    wanted = yaml.safe_load((inventory / "hosts.yml").read_text())
    groups = wanted["all"]["children"]
    groups["lab"]["hosts"][HOST] = {"zone": "zone-b", "lab_suite": "bookworm"}
    for group in ("qwen", "vllm"):
        groups[group].setdefault("hosts", {})[HOST] = {}
    (folder / "hosts.yml").write_text(yaml.safe_dump(wanted))
    play = yaml.safe_load((ROOT / "molecule/vllm/converge.yml").read_text())[0]
    (folder / "group_vars/vllm.yml").write_text(yaml.safe_dump(play["vars"]))
    return folder


@pytest.fixture(scope="module")
def platform(hosts: Path) -> Iterator[Path]:
    # Two labs are too many for two cores.
    lab(hosts, "down").require()
    # The models' entries are written beside the lab's own.
    prepare(hosts, show=False)
    inventory = with_vllm(hosts, FOLDER)
    try:
        lab(inventory, "up").require()
        playbook("secrets", inventory).require()
        deploy(inventory, show=False)
        yield inventory
    finally:
        if not KEEP:
            lab(inventory, "down").require()


def roll(inventory: Path, services: Path, *more: str) -> Run:
    return playbook("rolling_update", inventory, "-e", "tier=vllm", "-e", f"python_release_services={services}", *more)


def releases(inventory: Path) -> dict[str, str]:
    """App -> the release that the host is switched to: of the keeper and of the engine."""
    links = {app: f"/opt/devmentor/{app}/current" for app in ("vllm", "vllm-engine")}
    return {app: on(inventory, HOST, "readlink", link).require().output.strip() for app, link in links.items()}


def lock_without(package: str, folder: Path) -> str:
    """The variable that gives the engine a lock from which a package is left out that it imports when it starts."""
    whole = (ROOT / "roles/vllm/files/locks/cpu-3.11.lock").read_text()
    less, found = re.subn(rf"^{package}==.*\n(?:    --hash=.*\n)+", "", whole, flags=re.MULTILINE)
    assert found == 1
    lock = folder / "cpu.lock"
    lock.write_text(less)
    return json.dumps({"__vllm_locks": {"3.11": str(lock)}})


def serves(inventory: Path) -> set[bool]:
    """Whether each gateway sends requests to the host's QWEN."""
    gateways = Deployed(inventory).hosts("gateway")
    return {HOST in serving.up(serving.show_stat(each)).get("qwen", []) for each in gateways}


def test_an_engine_is_rolled_without_a_failed_request_and_then_there_is_nothing_to_do(
    platform: Path, tmp_path: Path
) -> None:
    before = releases(platform)
    better = source(tmp_path, "\n# A better one\n", "vllm/keeper.py")
    plan = roll(platform, better, "--check").require().output
    assert f"vllm       {HOST}        drained  impact: one engine fewer" in plan
    with Asking(platform) as asking:
        roll(platform, better).require()
        assert serves(platform) == {True}
    assert (asking.failed, asking.asked > 40) == ([], True)
    assert releases(platform)["vllm"] != before["vllm"]
    assert "Nothing to do" in roll(platform, better).require().output


def goes_back(platform: Path, asked_for: int, *variables: str) -> Run:
    """What the roll said, which took the host back by itself while nobody noticed."""
    before = releases(platform)
    with Asking(platform) as asking:
        refused = playbook("rolling_update", platform, "-e", "tier=vllm", *variables)
    assert refused.status != 0
    assert (asking.failed, asking.asked > asked_for) == ([], True)
    assert releases(platform) == before
    assert on(platform, HOST, "systemctl", "is-active", "vllm@chat").status == 0
    assert serves(platform) == {True}
    journal = json.loads(on(platform, "lab1", "cat", "/var/lib/devmentor/rollout/journal.json").require().output)
    assert journal["state"] == "rolled_back"
    return refused


def test_a_pretended_bad_keeper_goes_back_by_itself_and_nobody_notices(platform: Path, tmp_path: Path) -> None:
    bad = source(tmp_path, NEVER_READY, "vllm/keeper.py")
    refused = goes_back(platform, 20, "-e", f"python_release_services={bad}")
    assert "the engine did not start" in refused.output


def test_an_engine_that_cannot_start_goes_back_by_itself_and_nobody_notices(platform: Path, tmp_path: Path) -> None:
    goes_back(platform, 20, "-e", lock_without("msgspec", tmp_path))


def test_a_good_engine_is_taken_back_by_the_operator(platform: Path, tmp_path: Path) -> None:
    before = releases(platform)
    roll(platform, source(tmp_path, "\n# Good, and not wanted\n", "vllm/keeper.py")).require()
    assert releases(platform)["vllm"] != before["vllm"]
    with Asking(platform) as asking:
        playbook("rollback", platform, "-e", "tier=vllm").require()
    assert (asking.failed, asking.asked > 20) == ([], True)
    assert releases(platform) == before
    assert serves(platform) == {True}
