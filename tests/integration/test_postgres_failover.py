"""PostgreSQL's failover on real hosts, in short; `make chaos-postgres` plays every fault, as often as it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.postgres.cluster import Cluster, leader_of
from tests.chaos.postgres.faults import FAULTS
from tests.chaos.postgres.rounds import play
from tests.chaos.postgres.run import EVIDENCE, INVENTORY, LEFT_OUT, deploy, line
from tools.runs import lab, playbook

pytestmark = pytest.mark.lab

# The operator's goal is 5 s; a shared machine gets the time that its neighbours leave.
RTO_LIMIT_S = 10.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        yield deploy(INVENTORY, fresh=True, volumes=False)
    finally:
        lab(INVENTORY, "down").require()


@pytest.mark.parametrize("name", ["power_cut", "switchover", "false_alarm", "followers_at_once"])
def test_nothing_acknowledged_is_lost(cluster: Cluster, name: str):
    result = play(cluster, FAULTS[name], 1, 1, cluster.poolers, EVIDENCE / f"integration-{name}")
    print(line(result))
    assert result.problems == []
    if name == "power_cut":
        assert result.stall_s < RTO_LIMIT_S


def test_a_deployment_keeps_what_the_failover_made(cluster: Cluster):
    before = leader_of(cluster.views())
    run = playbook("site", INVENTORY, "--skip-tags", LEFT_OUT)
    run.require()
    assert run.changed() == {}
    assert leader_of(cluster.views()) == before
