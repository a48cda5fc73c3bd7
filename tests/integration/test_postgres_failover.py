"""The failover's short form for CI: one round each of what matters most, on a lab of PostgreSQL and its poolers alone.

`make chaos-postgres` has all faults and any number of rounds.
"""

from __future__ import annotations

import pytest

from tests.chaos.postgres.cluster import Cluster, leader_of
from tests.chaos.postgres.faults import FAULTS
from tests.chaos.postgres.rounds import play
from tests.chaos.postgres.run import EVIDENCE, INVENTORY, LEFT_OUT, line
from tools.runs import playbook

pytestmark = pytest.mark.lab

SEED = 1
# Generous: these hosts share two cores with whatever else CI runs. The bench has the figures.
RTO_LIMIT = 15.0


@pytest.mark.parametrize("fault", ["switchover", "power_cut", "false_alarm", "followers_at_once"])
def test_what_clients_were_told_stays_true(cluster: Cluster, fault: str) -> None:
    result = play(cluster, FAULTS[fault], SEED, 1, cluster.poolers, EVIDENCE / f"ci-{fault}")
    print(f"\n{line(result)}")
    assert result.problems == []
    assert result.acknowledged > 0
    if fault != "followers_at_once":
        assert result.stall_s < RTO_LIMIT


def test_a_deployment_keeps_what_the_failover_made(cluster: Cluster) -> None:
    before = leader_of(cluster.views())
    again = playbook("site", INVENTORY, "--skip-tags", LEFT_OUT).require()
    assert again.changed() == {}
    assert leader_of(cluster.views()) == before
