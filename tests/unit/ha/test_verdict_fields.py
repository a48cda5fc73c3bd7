"""No field of a healthy cluster's statuses can be lost or wrong without a reason, but those that are listed here."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from module_utils.devmentor_ha.verdict import HEALTHY, LAG_LIMIT_BYTES, judge
from module_utils.devmentor_ha.views import STALE_S
from tests.unit.ha.statuses import NODES, NOW, POOLERS, cluster, put

# May be absent, or anything. `*` stands for any part of the path; pg1 leads.
NOT_JUDGED = (
    "*.duties*",
    "pg*.rules*",  # the newest and the committed one are
    "pg*.waits_since",
    "pg*.lineage*",
    "pg*.following.epoch",
    "pg*.postgres.replay_lsn",
    "pg*.postgres.checkpoint_timeline",
    "pg*.postgres.streams_from",
    "pg*.postgres.system_identifier",
    "pg*.postgres.promised",
    "pg*.postgres.started_at",
    "pg*.postgres.waiting_commits",
    "pg*.postgres.oldest_transaction_s",
    "pg*.postgres.archive.archived",
    "pg*.postgres.has_rules",
    "pg*.postgres.replication.*.sync_state",  # the leader's synchronous_standby_names is
    "pg*.postgres.replication.*.lag_s",
    "pg*.postgres.slots.*.type",
    "pg*.postgres.slots.*.synced",
    "pool*.acting",
    "pool*.databases.*.clients",
    "pool*.databases.*.waiting",
    "pool*.databases.*.servers",
)
# Must be there and of its kind; what it says is not judged.
KIND_ALONE = (
    "pg*.now",
    "pool*.now",
    "*.paused.reason",
    "pg*.promise.controller",
    "pg*.promise.at",  # of a promise that is above the rule it is
    "pg*.postgres.lsn",  # the leader judges the lag
    "pg*.postgres.timeline",
    "pg1.following.leader",
    "pg1.postgres.streaming",
    "pg[234].postgres.synchronous_standby_names",
    "pg[234].postgres.slots*",
    "pg[234].postgres.archive.failed_last",
    "pool*.databases.*_ro.host",  # verify asks through it
)
# Other values that are in order as well.
IN_ORDER = {
    "*.paused.until": lambda value: value <= NOW,
    "pg*.promise.epoch": lambda value: 0 <= value < 2,
    "pg*.postgres.age_s": lambda value: 0 <= value < STALE_S,
    "pool*.pooler.age_s": lambda value: 0 <= value < STALE_S,
    "pg1.postgres.replication.*.lag_bytes": lambda value: value <= LAG_LIMIT_BYTES,
}
Way = tuple[str | int, ...]


def ways(value: Any, way: Way = ()) -> Iterator[Way]:
    """To every field at any depth."""
    if way:
        yield way
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from ways(value[key], (*way, key))


def path(way: Way) -> str:
    return ".".join(map(str, way))


def matches(way: Way, patterns: Any) -> list[str]:
    return [pattern for pattern in patterns if fnmatch.fnmatchcase(path(way), pattern)]


WHOLE = cluster()
ALL = list(ways(WHOLE))
JUDGED = [way for way in ALL if not matches(way, NOT_JUDGED)]
# Lists of a follower may be shorter: nobody streams from it yet.
NEEDED = [way for way in JUDGED if not fnmatch.fnmatchcase(path(way), "pg[234].postgres.slots.[0-9]")]


def at(way: Way) -> Any:
    found: Any = WHOLE
    for key in way:
        found = found[key]
    return found


def state(way: Way, value: Any) -> str:
    answers = cluster()
    put(answers, way[:-1], way[-1], value)
    found = judge(NODES, POOLERS, answers)
    assert (found.state == HEALTHY) == (not found.reasons)
    assert all(reason.what and reason.remedy for reason in found.reasons)
    json.dumps(found.as_dict())
    return found.state


@pytest.mark.parametrize("pattern", [*NOT_JUDGED, *KIND_ALONE, *IN_ORDER])
def test_every_exception_is_of_a_field_that_there_is(pattern):
    assert any(matches(way, [pattern]) for way in ALL)


@pytest.mark.parametrize("way", NEEDED, ids=path)
def test_a_field_that_is_lost(way):
    assert state(way, ...) != HEALTHY


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def in_order(way: Way, value: Any) -> bool:
    """Whether this value there leaves the cluster as healthy as before."""
    before = at(way)
    if before is None and isinstance(value, str):
        return way[-1] == "wal_status"  # the slots of a follower that nobody uses have none
    if kind(value) is not kind(before) and value != before:
        return False
    if value == before or matches(way, KIND_ALONE):
        return True
    return any(IN_ORDER[pattern](value) for pattern in matches(way, IN_ORDER))


def part_in_order(way: Way, value: Any) -> bool:
    if value == at(way):
        return True
    if matches(way, ["pg[234].postgres.slots", "pg[234].postgres.replication"]):
        return value == []
    # Whom the leader followed before is not judged.
    return way == ("pg1", "following") and isinstance(value, dict) and isinstance(value.get("leader"), str)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=True)
    | st.text(max_size=3)
    | st.sampled_from(["", *NODES, *POOLERS, "running", "streaming", "reserved", NOW, NOW + 60, "10.0.0.2", 10**9]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["node", "leader", "epoch", "until", "name", "state"]), inner, max_size=3),
    max_leaves=5,
)
LEAVES = [way for way in JUDGED if not isinstance(at(way), dict | list)]
TREES = [way for way in JUDGED if isinstance(at(way), dict | list)]


@given(way=st.sampled_from(LEAVES), value=JSON)
@example(way=("pg1", "rule", "epoch"), value=math.inf)
@example(way=("pool1", "pooler", "epoch"), value=1.5)
@settings(max_examples=500, deadline=None)
def test_a_field_that_is_wrong(way, value):
    if not in_order(way, value):
        assert state(way, value) != HEALTHY


@given(way=st.sampled_from(TREES), value=JSON)
@settings(max_examples=200, deadline=None)
def test_a_part_that_is_wrong(way, value):
    if not part_in_order(way, value):
        assert state(way, value) != HEALTHY


@pytest.mark.parametrize("way", LEAVES, ids=path)
def test_each_field_that_is_wrong_in_a_known_way(way):
    """What random values rarely hit."""
    before = at(way)
    for value in (None, [], {}, not before if isinstance(before, bool) else "x", -1, 10**12, float("nan"), "1"):
        if not in_order(way, value):
            assert state(way, value) != HEALTHY, value
