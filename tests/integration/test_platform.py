"""The whole platform on bare hosts, in the order an operator meets it.

The tests build on each other (a deployment takes minutes), so each needs `deployed` and fails with its reason.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.postgres.cluster import Cluster, leader_of, wait_until
from tests.integration import secrecy, verify_table
from tests.integration.conftest import RESULTS
from tests.integration.qwen_instance import ask_instance
from tools import ask
from tools.inventory_vars import Inventory
from tools.lab_run import deploy, prepare
from tools.runs import lab, load_average, playbook, record
from tools.runs import run as run_command

pytestmark = pytest.mark.lab

BARE_LIMIT = 15 * 60.0
PREBAKED_LIMIT = 6 * 60.0
SECOND_RUN_SHARE = 0.25
# The second run is processor time alone: it waits until the load of what ran before has gone, or this long.
SETTLE_SECONDS = 90
# From a host's start, with everything that it runs; the bench of the failover has PostgreSQL's hosts alone.
REJOIN_SECONDS = 120.0


@pytest.fixture(scope="module")
def deployed(hosts: Path) -> Path:
    """Bare hosts with the platform on them; the floor is measured first, on the same kind of hosts."""
    floor = RESULTS.with_name("floor.json")
    floor.parent.mkdir(parents=True, exist_ok=True)
    lab(hosts, "down").require()
    lab(hosts, "up", "--bare", show=True).require()
    lab(hosts, "floor", "--json", str(floor), show=True).require()
    record(RESULTS, floor=json.loads(floor.read_text()))
    lab(hosts, "down").require()
    lab(hosts, "up", "--bare", show=True).require()
    prepare(hosts)
    load = load_average()
    run = deploy(hosts)
    record(RESULTS, bare={"seconds": round(run.seconds, 1), "load_before": load, "load_after": load_average()})
    return hosts


def test_deploy_on_bare_hosts_in_time(deployed: Path) -> None:
    seconds = json.loads(RESULTS.read_text())["bare"]["seconds"]
    print(f"\nbare deployment {seconds} s, limit {BARE_LIMIT} s")
    assert seconds <= BARE_LIMIT


def test_verify_is_green(deployed: Path) -> None:
    playbook("verify", deployed, show=True).require()


def test_deploy_again_changes_nothing_and_is_quick(deployed: Path) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while load_average() > 2 and time.monotonic() < deadline:
        time.sleep(5)
    load = load_average()
    run = playbook("site", deployed).require()
    bare = json.loads(RESULTS.read_text())["bare"]["seconds"]
    share = run.seconds / bare
    record(RESULTS, second={"seconds": round(run.seconds, 1), "load_before": load, "share": share})
    print(f"\nsecond run {run.seconds:.0f} s at load {load}, {share:.2f} of the bare run, limit {SECOND_RUN_SHARE}")
    assert run.changed() == {}
    assert run.seconds <= SECOND_RUN_SHARE * bare


def trace(inventory: Path, request_id: str) -> dict[str, object]:
    """The trace of a request, from whichever QWEN instance served it (an administrator's view, on the host itself)."""
    instances = Inventory(inventory).hosts("qwen")
    for host in instances:
        found = ask_instance(inventory, host, f"/v1/traces/{request_id}")
        if "error" not in found:
            return dict(found)
    pytest.fail(f"no QWEN instance of {instances} has a trace of request {request_id}")


def test_the_document_is_in_the_engines_prompt_and_the_second_answer_from_the_cache(deployed: Path) -> None:
    result = ask.run(Inventory(deployed), ask.DEFAULT_QUESTION)
    print("\n" + ask.render(result))
    assert result["context"] == "ok"
    assert result["cache"] == ["miss", "hit"]
    assert result["served_by"][0].startswith("engine")
    assert result["served_by"][1].startswith("cache")
    assert result["same_answer"]
    assert result["document"] in json.dumps(trace(deployed, result["request_id"]), ensure_ascii=False)


def test_the_official_client_works_with_base_url_key_and_ca_alone(deployed: Path, tmp_path: Path) -> None:
    """Told by the environment alone, as its users do it: no header, no certificate of ours, no special case."""
    client = ask.client_of(Inventory(deployed))
    ca = tmp_path / "ca.pem"
    ca.write_text(client.ca)
    env = {"OPENAI_BASE_URL": f"https://{client.host}/v1", "OPENAI_API_KEY": client.key, "SSL_CERT_FILE": str(ca)}
    done = run_command(sys.executable, "-m", "tests.integration.official_client", env=env, timeout=300).require()
    found = json.loads(done.output.splitlines()[-1])
    print(f"\n{found}")
    assert found["whole"]["text"]
    assert found["served_by"] == "engine"
    assert found["stream"]["text"]
    assert found["stream"]["finish"] in ("stop", "length")
    assert found["stream"]["tokens"] > 0
    # The lab's random model calls no tool: what it does with them is tested in unit/services/qwen.
    assert found["tools"]["finish"] in ("stop", "length", "tool_calls")
    assert found["tools_stream"]["finish"] in ("stop", "length", "tool_calls")
    assert found["completion"]
    assert found["embedding"] == 384
    assert (found["no_such_model"], found["no_such_key"]) == ("NotFoundError", "AuthenticationError")


def test_check_and_diff_on_deployed_hosts_report_no_change(deployed: Path) -> None:
    run = playbook("site", deployed, "--check", "--diff").require()
    assert run.changed() == {}
    assert shown_secrets(deployed, run.output) == []


def test_limit_to_one_host_and_tags_of_one_component(deployed: Path) -> None:
    limited = playbook("site", deployed, "--limit", "lab3").require()
    assert set(limited.recap()) <= {"lab3", "localhost"}
    assert limited.changed() == {}
    tagged = playbook("site", deployed, "--tags", "qdrant").require()
    assert tagged.changed() == {}
    tasks = {line.split(" : ")[0].removeprefix("TASK [") for line in tagged.output.splitlines() if " : " in line
             and line.startswith("TASK [") and "Validating arguments" not in line}  # fmt: skip
    assert tasks == {"qdrant"}


def replaceable(reader: Inventory) -> str:
    """A host with a QWEN instance that is neither the PostgreSQL primary nor the object store's only one."""
    primary = str(reader.value("lab1", "postgres_bootstrap_primary"))
    return next(host for host in reader.hosts("qwen") if host != primary and host not in reader.hosts("objectstore"))


def test_a_lost_host_leaves_the_gateway_answering_is_left_out_where_declared_and_comes_back(
    deployed: Path, tmp_path: Path
) -> None:
    """Not the primary. Declared lost, in the group `offline`, the rest deploys and verifies without it."""
    reader = Inventory(deployed)
    client = ask.client_of(reader)
    victim = replaceable(reader)
    lab(deployed, "kill", victim).require()
    try:
        deadline = time.monotonic() + 60
        failures, answered = [], 0
        while time.monotonic() < deadline and answered < 10:
            try:
                ask.chat(client, f"Is anybody there? {time.monotonic()}")
                answered += 1
            except ask.AskError as error:
                failures.append(str(error))
                answered = 0
                time.sleep(1)
        print(f"\n{victim} killed: ten answers in a row after {60 - (deadline - time.monotonic()):.1f} s, "
              f"{len(failures)} requests failed before")  # fmt: skip
        assert answered == 10, failures[-3:]
        red = playbook("verify", deployed)
        assert red.status != 0, "verify must not be green while a host is down"
        rows = verify_table.rows(red.output)
        # The lost host's one row; the others were asked all the same, and their rows may say what they miss of it.
        assert [row[:4] for row in rows if row.host == victim] == [("host", victim, "answers", "unknown")], red.tail()
        others = set(reader.hosts("all")) - set(reader.hosts("offline")) - {victim}
        assert {row.host for row in rows if row.result == "pass"} >= others, red.tail()
        assert f"{victim}: host, answers: unknown: " in red.output, red.tail()

        declared = tmp_path / "offline.yml"
        declared.write_text(json.dumps({"all": {"children": {"offline": {"hosts": {victim: {}}}}}}))
        without = playbook("site", deployed, "-i", str(declared)).require()
        assert victim not in without.recap()
        green = playbook("verify", deployed, "-i", str(declared)).require()
        assert victim not in {row.host for row in verify_table.rows(green.output)}
        ask.chat(client, f"Is anybody there? {time.monotonic()}")
    finally:
        lab(deployed, "start", victim).require()
    playbook("site", deployed).require()
    playbook("verify", deployed).require()
    assert playbook("site", deployed, "--limit", victim).require().changed() == {}


def test_a_lost_primary_is_replaced_and_comes_back_by_itself(deployed: Path) -> None:
    reader, cluster = Inventory(deployed), Cluster(deployed)
    client = ask.client_of(reader)
    lost = leader_of(cluster.views())
    lab(deployed, "kill", lost).require()
    killed = time.monotonic()
    try:
        _, why = wait_until(lambda: "" if leader_of(cluster.views()) not in ("", lost) else "nobody leads", 30)
        assert not why, cluster.told()
        led = time.monotonic() - killed
        _, why = wait_until(lambda: answers(client), 60)
        assert not why
        answered = time.monotonic() - killed
    finally:
        lab(deployed, "start", lost).require()
    started = time.monotonic()
    _, why = wait_until(cluster.settled, REJOIN_SECONDS)
    assert not why, f"{why}\n{cluster.told()}"
    followed = time.monotonic() - started
    print(f"\n{lost}, the primary, killed: {leader_of(cluster.views())} seen leading after {led:.1f} s, an answer "
          f"after {answered:.1f} s; {lost} follows {followed:.1f} s after its start")  # fmt: skip
    deadline = time.monotonic() + 180
    while (run := playbook("verify", deployed)).status != 0 and time.monotonic() < deadline:
        time.sleep(5)
    run.require()
    assert playbook("site", deployed).require().changed() == {}


def answers(client: ask.Client) -> str:
    """Why the gateway gives no answer; empty where it does."""
    try:
        ask.chat(client, f"Is anybody there? {time.monotonic()}")
    except ask.AskError as error:
        return str(error)
    return ""


def shown_secrets(inventory: Path, output: str) -> list[str]:
    """Names of the vault's variables of which a value is in the output."""
    reader = Inventory(inventory)
    vault = reader.secrets(reader.hosts("postgres")[0])
    assert sum(len(secrecy.pieces(value)) for value in vault.values()) >= 10
    # The value of several lines: a diff shows it indented, so only its lines can be found.
    assert secrecy.pieces(vault["vault_ca_key"])
    return secrecy.shown(vault, output)


def test_deploy_on_prebaked_hosts_in_time(hosts: Path, deployed: Path) -> None:
    lab(hosts, "down").require()
    lab(hosts, "up", "--layer", "baked", show=True).require()
    checked = playbook("site", hosts, "--check", "--diff")
    assert checked.status == 0, checked.tail()
    # Everything is new here, so every difference is shown, the secret files' too.
    assert shown_secrets(hosts, checked.output) == []
    load = load_average()
    run = deploy(hosts)
    record(RESULTS, prebaked={"seconds": round(run.seconds, 1), "load_before": load, "load_after": load_average()})
    print(f"\nprebaked deployment {run.seconds:.0f} s, limit {PREBAKED_LIMIT:.0f} s\n{RESULTS.read_text()}")
    assert run.seconds <= PREBAKED_LIMIT
    playbook("verify", hosts).require()
