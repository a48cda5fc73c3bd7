"""Modules of library/ against fake agents."""

import pytest

from module_utils.devmentor_ha.rules import first_rule
from tests.unit.ha.fake_agents import FakeClient, status, write_host

NODES = ["pg1", "pg2", "pg3", "pg4"]
POOLERS = ["pool1", "pool2"]


@pytest.fixture
def rule():
    """1.0: pg1 leads."""
    return first_rule("pg1", NODES[1:]).as_dict()


@pytest.fixture
def cluster(monkeypatch, rule):
    """A whole cluster's agents, all fake."""
    from ansible.module_utils.devmentor_ha import agents

    client = FakeClient()
    client.statuses = {node: status(node, rule) for node in NODES}
    monkeypatch.setattr(agents, "Client", client)
    return client


@pytest.fixture
def run(run_module, cluster, tmp_path):
    """Runs a module on pg2."""
    env_file = write_host(tmp_path, "pg2", NODES, POOLERS)

    def inner(name, check=False, **parameters):
        return run_module(name, check=check, **{"env_file": str(env_file), **parameters})

    return inner
