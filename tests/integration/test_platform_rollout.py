"""Rolling updates of the deployed platform, as an operator runs them: a plan, a release that is good, one that is not.

Runs on the platform that test_platform.py deployed; alone, it deploys one. A release differs by one line of its source.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.rolling import serving
from tests.chaos.postgres.cluster import wait_until
from tests.chaos.qwen.deployed import Deployed
from tools import ask
from tools.inventory_vars import Inventory
from tools.lab_run import deploy, prepare
from tools.runs import ROOT, Run, lab, playbook

pytestmark = pytest.mark.lab

QWEN = ("lab1", "lab2", "lab3")
JOURNAL = "/var/lib/devmentor/rollout/journal.json"
LOCK = "/var/lib/devmentor/rollout/lock.json"
STANDBY = ("-i", str(ROOT / "tests/integration/standby.yml"))
# The process lives, and every probe of its readiness is answered with 503.
NEVER_READY = """

async def _never(self):
    from devmentor.common.health import Report
    return Report(False, {"pretended": "never ready"})


Readiness.report = _never
"""


@pytest.fixture(scope="module")
def deployed(hosts: Path) -> Iterator[Path]:
    """Afterwards QWEN runs what the checkout has, and no lock is left."""
    lab(hosts, "up").require()
    prepare(hosts, show=False)
    if on(hosts, "lab1", "systemctl", "is-active", "--quiet", "qwen").status != 0:
        deploy(hosts)
    yield hosts
    playbook("site", hosts, "--tags", "qwen").require()
    for host in QWEN:
        assert on(hosts, host, "test", "!", "-e", LOCK).status == 0


def on(hosts: Path, host: str, *command: str) -> Run:
    return lab(hosts, "exec", host, "--", *command)


def source(folder: Path, more: str, file: str = "qwen/app.py") -> Path:
    """The services' source with a few lines more in one file."""
    copy = folder / "services"
    shutil.copytree(ROOT / "services", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    with (copy / "src/devmentor" / file).open("a", encoding="utf-8") as end:
        end.write(more)
    return copy


def update(hosts: Path, services: Path, *more: str) -> Run:
    return playbook("rolling_update", hosts, "-e", "tier=qwen", "-e", f"python_release_services={services}", *more)


def releases(hosts: Path) -> dict[str, str]:
    """Host -> the release that its QWEN is switched to."""
    return {host: on(hosts, host, "readlink", "/opt/devmentor/qwen/current").require().output.strip() for host in QWEN}


class Asking:
    """Asks through the gateway four times a second, until the block ends; `failed` has what was not a whole answer."""

    def __init__(self, hosts: Path) -> None:
        self._client = ask.client_of(Inventory(hosts))
        model = self._client.expect(200, "GET", "/v1/models").body["data"][0]["id"]
        self._body = {"model": model, "temperature": 0, "max_tokens": 8}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked = 0
        self.failed: list[str] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.25):
            self.asked += 1
            messages = [{"role": "user", "content": f"What is {self.asked} and {time.time_ns()}?"}]
            try:
                answer = self._client.request("POST", "/v1/chat/completions", {**self._body, "messages": messages})
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                continue
            served_by = answer.headers.get("x-devmentor-served-by")
            if answer.status != 200 or served_by not in ("engine", "cache-l1", "cache-l2"):
                self.failed.append(f"{answer.status} by {served_by}: {answer.body}")


def test_the_plan_changes_nothing(deployed: Path, tmp_path: Path) -> None:
    before = releases(deployed)
    plan = update(deployed, source(tmp_path, "\n# The plan's\n"), "--check").require()
    assert "update: 3 steps, one host at a time" in plan.output
    assert all(f"qwen       {host}" in plan.output for host in QWEN)
    assert releases(deployed) == before
    assert on(deployed, "lab1", "test", "!", "-e", LOCK).status == 0


def test_a_pretended_bad_release_goes_back_by_itself_and_nobody_notices(deployed: Path, tmp_path: Path) -> None:
    before = releases(deployed)
    with Asking(deployed) as asking:
        refused = update(deployed, source(tmp_path, NEVER_READY), "-e", "qwen_ready_seconds=20")
    assert refused.status != 0
    assert "never ready" in refused.output
    assert releases(deployed) == before
    assert (asking.failed, asking.asked > 20) == ([], True)
    for host in QWEN:
        assert on(deployed, host, "systemctl", "is-active", "qwen-surge").status != 0
        assert on(deployed, host, "test", "!", "-e", LOCK).status == 0


def test_a_release_is_rolled_without_a_failed_request_and_then_there_is_nothing_to_do(
    deployed: Path, tmp_path: Path
) -> None:
    before = releases(deployed)
    better = source(tmp_path, "\n# A better one\n")
    with Asking(deployed) as asking:
        update(deployed, better).require()
    after = releases(deployed)
    assert all(after[host] != before[host] for host in QWEN)
    assert (asking.failed, asking.asked > 100) == ([], True)
    again = update(deployed, better).require()
    assert "Nothing to do" in again.output
    assert again.changed() == {}
    journal = json.loads(on(deployed, "lab1", "cat", JOURNAL).require().output)
    assert journal["state"] == "finished"
    assert [step["host"] for step in journal["steps"] if step["phase"] == "done"] == list(QWEN)

    with Asking(deployed) as asking:
        playbook("rollback", deployed, "-e", "tier=qwen", "-e", "host=lab1").require()
    assert releases(deployed) == {**after, "lab1": before["lab1"]}
    assert asking.failed == []


@pytest.fixture
def with_standby(deployed: Path) -> Iterator[Path]:
    """lab4 stands by for QWEN; afterwards it does not."""
    playbook("site", deployed, *STANDBY).require()
    # It does not wait until the gateways have taken in again what it restarted.
    gateways = Deployed(deployed).hosts("gateway")

    def lacking() -> str:
        found = {host.name: serving.up(serving.show_stat(host)).get("qwen") for host in gateways}
        return "" if all(names == list(QWEN) for names in found.values()) else f"in service: {found}"

    _, why = wait_until(lacking, 120)
    assert not why
    yield deployed
    playbook("site", deployed).require()


@pytest.mark.long
def test_a_standby_host_joins_before_an_engine_is_drained_and_leaves_after_it(with_standby: Path) -> None:
    restart = ("restart", with_standby, *STANDBY, "-e", "tier=llamacpp")
    plan = playbook(*restart, "--check").require().output
    assert "lab1         host     impact: none, lab4 serves meanwhile" in plan
    assert "lab4         idle     impact: none, it stands by" in plan

    watch = serving.Watch(Deployed(with_standby).hosts("gateway"), time.monotonic())
    watch.start()
    with Asking(with_standby) as asking:
        playbook(*restart).require()
    watch.stop()
    assert (asking.failed, asking.asked > 20) == ([], True)
    seen = [set(sample.up["qwen"]) for sample in watch.samples if "qwen" in sample.up]
    assert min(len(names) for names in seen) == 3, "a gateway had fewer instances than before"
    assert {"lab4", "lab2", "lab3"} in seen, "lab4 never served in the place of lab1"
    assert seen[-1] == {"lab1", "lab2", "lab3"}


def locked(deployed: Path) -> str:
    """The run that has the lock, as one whose control node is gone has left it."""
    run = "20260101T000000-abcdef"
    lock = json.dumps({"run": run, "owner": "anna@control1", "at": ""})
    for host in QWEN:
        on(deployed, host, "sh", "-c", f"echo '{lock}' > {LOCK}").require()
    return run


def test_a_roll_is_refused_while_another_has_the_lock_which_is_let_go_though_there_is_nothing_to_do(
    deployed: Path,
) -> None:
    run = locked(deployed)
    refused = playbook("restart", deployed, "-e", "tier=gateway")
    assert refused.status != 0
    assert f"{run} of anna@control1" in refused.output
    assert f"-e rollout_take_over={run}" in refused.output
    taken = playbook("rollback", deployed, "-e", "tier=gateway", "-e", f"rollout_take_over={run}").require()
    assert "Nothing to do" in taken.output
    assert [on(deployed, host, "test", "-e", LOCK).status for host in QWEN] == [1, 1, 1]


def test_a_wrong_tier_and_a_limited_run_are_refused_before_anything(deployed: Path) -> None:
    assert "quen" in (wrong := playbook("rolling_update", deployed, "-e", "tier=quen")).output
    limited = playbook("rolling_update", deployed, "-e", "tier=qwen", "--limit", "lab1")
    assert "do not use --limit" in limited.output
    assert (wrong.status != 0, limited.status != 0) == (True, True)
