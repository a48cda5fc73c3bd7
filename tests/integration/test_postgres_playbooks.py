"""The operator's playbooks for PostgreSQL on real hosts, run as a scheduler runs them: by ansible-runner, with standard
input closed. The tests build on each other; each leaves the cluster whole."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.postgres import rounds
from tests.chaos.postgres.cluster import Cluster, leader_of, wait_until
from tests.chaos.postgres.faults import FAILOVER, Fault, Scene, nothing
from tests.chaos.postgres.run import EVIDENCE, INVENTORY
from tests.integration.newer_packages import SUFFIX, installed, offer
from tools.runs import ROOT, Run, lab, run

pytestmark = pytest.mark.lab

WHOLE_SECONDS = 180.0

Play = Callable[..., Run]


@pytest.fixture
def play(cluster: Cluster, tmp_path: Path) -> Play:
    """Runs playbooks/NAME.yml with arguments."""
    number = itertools.count(1)
    env = {"ANSIBLE_VAULT_PASSWORD_FILE": str((INVENTORY / ".vault-password").resolve())}

    def inner(name: str, *arguments: str) -> Run:
        command = ["ansible-runner", "run", str(tmp_path), "--project-dir", str(ROOT), "-p", f"playbooks/{name}.yml"]
        command += ["--inventory", str(INVENTORY), "--ident", f"{name}-{next(number)}"]
        command += [f"--cmdline={shlex.join(arguments)}"] if arguments else []  # one word: it may begin with a dash
        return run("sh", "-c", 'exec "$@" <&-', "sh", *command, timeout=600, env=env)

    return inner


@pytest.fixture
def leader(cluster: Cluster) -> str:
    """Who leads a cluster that is whole."""
    return leads(cluster)


@pytest.fixture
def follower(cluster: Cluster, leader: str) -> str:
    return next(node for node in cluster.nodes if node != leader)


def said(done: Run) -> str:
    """Its output with Ansible's line breaks undone."""
    return " ".join(done.output.split())


def leads(cluster: Cluster) -> str:
    """Who leads once the cluster is whole again."""
    _, why = wait_until(cluster.settled, WHOLE_SECONDS)
    if why:
        pytest.fail(f"not whole after {WHOLE_SECONDS:g} s: {why}\n{cluster.told()}")
    return leader_of(cluster.views())


def epoch(cluster: Cluster) -> int:
    """Of the newest rule that any server has."""
    return max(view.rule["epoch"] for view in cluster.views().values() if view.rule)


def test_status_is_green_and_names_everybody(play: Play, cluster: Cluster, leader: str):
    seen = play("pg_status").require()
    assert f"healthy: {leader} leads" in said(seen)
    for name in [*cluster.nodes, *cluster.poolers]:
        assert name in said(seen)
    assert seen.changed() == {}


@pytest.mark.parametrize(
    ("name", "arguments", "remedy"),
    [
        ("rejoin", (), "pass -e target=NODE"),
        ("rejoin", ("-e", "target=nobody"), "pass -e target=NODE"),
        ("pg_maintenance", (), "pass -e maintenance=pause"),
        ("pg_maintenance", ("-e", "maintenance=remove"), "with -e target=NODE"),
        ("failover", (), "is healthy"),
        ("failover", ("-e", "force_data_loss_epoch=999", "-e", "force=true"), "name that"),
    ],
)
def test_what_is_not_meant_or_not_needed_is_refused(
    play: Play, cluster: Cluster, leader: str, name: str, arguments: tuple[str, ...], remedy: str
):
    before = epoch(cluster)
    refused = play(name, *arguments)
    assert refused.status != 0
    assert remedy in said(refused)
    assert refused.changed() == {}
    assert (leads(cluster), epoch(cluster)) == (leader, before)


def test_switchover_checked_made_and_made_again(play: Play, cluster: Cluster, leader: str, follower: str):
    planned = play("switchover", "--check", "--diff", "-e", f"target={follower}").require()
    assert f"{follower} would replace {leader}" in said(planned)
    assert leads(cluster) == leader
    play("switchover", "-e", f"target={follower}").require()
    assert leads(cluster) == follower
    assert play("switchover", "-e", f"target={follower}").require().changed() == {}
    play("pg_status").require()


def test_a_pause_shows_and_ends(play: Play, cluster: Cluster, leader: str):
    play("pg_maintenance", "-e", "maintenance=pause", "-e", "minutes=30", "-e", "reason=switch").require()
    paused = play("pg_status")
    assert paused.status != 0
    assert "paused until" in said(paused)
    play("pg_maintenance", "-e", "maintenance=resume").require()
    assert play("pg_maintenance", "-e", "maintenance=resume").require().changed() == {}
    play("pg_status").require()


def test_a_replica_restarts_leaves_and_joins(play: Play, cluster: Cluster, leader: str, follower: str):
    target = ("-e", f"target={follower}")
    play("pg_maintenance", "-e", "maintenance=restart", *target).require()
    assert leads(cluster) == leader
    play("pg_maintenance", "-e", "maintenance=remove", *target).require()
    short = play("pg_status")
    assert short.status != 0
    assert f"{follower}: was removed from the rule" in said(short)
    other = next(node for node in cluster.nodes if node not in (leader, follower))
    play("switchover", "-e", f"target={other}").require()
    newest = max((view.rule for view in cluster.views().values()), key=lambda rule: (rule["epoch"], rule["sub"]))
    assert (newest["leader"], newest["removed"]) == (other, [follower])  # the next leader knows it, too
    play("pg_maintenance", "-e", "maintenance=add", *target).require()
    assert play("pg_maintenance", "-e", "maintenance=add", *target).require().changed() == {}
    assert leads(cluster) == other
    play("pg_status").require()


def test_the_leader_is_not_restarted(play: Play, cluster: Cluster, leader: str):
    refused = play("pg_maintenance", "-e", "maintenance=restart", "-e", f"target={leader}")
    assert refused.status != 0
    assert leads(cluster) == leader


def test_an_update_without_newer_packages_changes_nothing(play: Play, cluster: Cluster, leader: str):
    assert play("pg_maintenance", "-e", "maintenance=update").require().changed() == {}
    assert leads(cluster) == leader


@pytest.mark.long
def test_an_update_takes_the_leader_last_and_fails_no_statement(play: Play, cluster: Cluster, leader: str):
    packages = ["postgresql-17", "postgresql-client-17"]
    hosts = [cluster.lab.host(node) for node in cluster.nodes]
    offer(hosts, packages)

    def update(_: Scene) -> None:
        assert leader in said(play("pg_maintenance", "-e", "maintenance=update", "--check").require())
        play("pg_maintenance", "-e", "maintenance=update").require()

    fault = Fault("update", "a newer minor version, host by host", FAILOVER, update, nothing, flawless=True)
    result = rounds.play(cluster, fault, 1, 1, cluster.poolers, EVIDENCE / "update")
    assert result.problems == []
    assert {installed(host, name).endswith(SUFFIX) for host in hosts for name in packages} == {True}
    assert leads(cluster) != leader
    assert play("pg_maintenance", "-e", "maintenance=update").require().changed() == {}


def test_a_copy_from_the_leader(play: Play, cluster: Cluster, leader: str, follower: str):
    play("rejoin", "-e", f"target={follower}", "-e", "method=reclone").require()
    assert leads(cluster) == leader
    assert play("rejoin", "-e", f"target={follower}").require().changed() == {}


def test_with_a_replica_down_everything_works_from_the_others(play: Play, cluster: Cluster, leader: str):
    """The first host of the group, which all playbooks would ask, is the one that is down, unless it leads."""
    down = next(node for node in cluster.nodes if node != leader)
    other = next(node for node in cluster.nodes if node not in (leader, down))
    lab(INVENTORY, "kill", down).require()
    try:
        seen = play("pg_status")
        assert seen.status != 0
        assert f"{leader} leads" in said(seen)
        assert f"{down}: no status" in said(seen)
        play("switchover", "-e", f"target={other}").require()
        assert leader_of(cluster.views()) == other
        play("pg_maintenance", "-e", "maintenance=pause").require()
        play("pg_maintenance", "-e", "maintenance=resume").require()
    finally:
        lab(INVENTORY, "start", down).require()
    assert leads(cluster) == other
    play("pg_status").require()


def test_a_failover_that_the_agents_were_kept_from(play: Play, cluster: Cluster, leader: str):
    play("pg_maintenance", "-e", "maintenance=pause").require()
    lab(INVENTORY, "kill", leader).require()
    try:
        planned = play("failover", "--check")
        assert f"{leader}: no answer" in said(planned)
        assert leader_of(cluster.views()) == ""
        assert play("pg_status").status != 0
        play("failover", "-e", "reason=test").require()
        new = leader_of(cluster.views())
        assert new not in ("", leader)
    finally:
        lab(INVENTORY, "start", leader).require()
    play("pg_maintenance", "-e", "maintenance=resume").require()
    assert leads(cluster) == new
    play("pg_status").require()
