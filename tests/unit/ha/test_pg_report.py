"""Filter pg_report: one report of what several hosts said."""

from filter_plugins.pg_status import FilterModule
from module_utils.devmentor_ha.verdict import judge
from tests.unit.ha.statuses import NODES, POOLERS, cluster

pg_report = FilterModule().filters()["pg_report"]


def test_the_verdict_of_the_host_that_sees_most_and_a_line_for_one_that_could_not_ask():
    healthy = {**judge(NODES, POOLERS, cluster()).as_dict(), "changed": False}
    found = pg_report({"pg1": healthy, "pg2": {"failed": True, "msg": "no agent here"}, "pg3": {"unreachable": True}})
    assert (found["host"], found["state"]) == ("pg1", "healthy")
    assert found["lines"][-2:] == ["! pg2: no agent here", "! pg3: no result"]


def test_without_any_verdict_it_is_unknown():
    found = pg_report({"pg1": {"failed": True, "msg": "no agent here"}})
    assert found["state"] == "unknown"
    assert found["lines"] == ["unknown: no host gave a verdict", "! pg1: no agent here"]
    assert pg_report({})["state"] == "unknown"
