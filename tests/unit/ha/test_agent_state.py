"""What the agent must not forget."""

import json
import time

import pytest

from devmentor.pgagent.state import State
from devmentor_ha.rules import first_rule, next_rule

FIRST = first_rule("pg1", ["pg2", "pg3", "pg4"])


def test_a_promise_survives_and_never_goes_back(tmp_path):
    State(tmp_path).set_promise(3, "pg2/a")
    again = State(tmp_path)
    assert (again.promise.epoch, again.promise.controller) == (3, "pg2/a")
    again.set_promise(3, "pg2/a")
    for epoch, controller in ((3, "pg3/b"), (2, "pg2/a")):
        with pytest.raises(ValueError, match="does not admit"):
            again.set_promise(epoch, controller)
    assert State(tmp_path).promise.epoch == 3


def test_a_lower_rule_is_no_news(tmp_path):
    state = State(tmp_path)
    later = next_rule([FIRST], "pg2", 2)
    assert state.know_committed(later)
    assert not state.know_committed(FIRST)
    assert State(tmp_path).committed == later


def test_the_newest_row_may_go_back_with_a_rewind(tmp_path):
    state = State(tmp_path)
    state.know_newest(next_rule([FIRST], "pg1", 2))
    state.know_newest(FIRST)
    assert State(tmp_path).newest == FIRST


def test_a_pause_ends_by_itself(tmp_path):
    state = State(tmp_path)
    state.set_paused(time.time() + 60, "disk swap")
    assert State(tmp_path).is_paused
    state.set_paused(time.time() - 1, "")
    assert not State(tmp_path).is_paused


def test_the_archive_is_held_by_a_file(tmp_path):
    state = State(tmp_path)
    state.hold_archive(True)
    assert (tmp_path / "archive-hold").exists()
    assert state.archive_held
    state.hold_archive(False)
    state.hold_archive(False)
    assert not state.archive_held


def test_a_file_that_is_no_object_is_refused_by_name(tmp_path):
    (tmp_path / "promise.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"promise\.json"):
        State(tmp_path)
