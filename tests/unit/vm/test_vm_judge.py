"""What counts as lost after a power failure."""

import pytest

from tests.vm.judge import CONTROLS, SUBJECTS, Result, inconclusive, line

TOLD = dict.fromkeys((*SUBJECTS, *CONTROLS), 10)


def judged(**there):
    found = {name: {"found": 10, "whole": True} for name in TOLD} | there
    result = Result(seed=1, round=1, at="", load=0.0)
    result.judge(TOLD, found)
    return result


def test_what_was_acknowledged_is_there():
    result = judged()
    assert (result.problems, result.unreadable, set(result.lost.values())) == ([], {}, {0})


def test_one_more_may_have_been_under_way():
    assert judged(promise={"found": 11, "whole": True}).problems == []


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize(
    ("there", "lost", "problem"),
    [
        ({"found": 9, "whole": True}, 1, "1 lost"),
        ({"found": 12, "whole": True}, 0, "messages are incomplete"),
        ({"found": 10, "whole": False}, 10, "not what was written"),
        ({"found": 0, "whole": False, "error": "JSONDecodeError: x"}, 10, "unreadable after the power failure: JSON"),
        ({"error": "the guest said nothing of it"}, 10, "said nothing"),
    ],
)
def test_a_subject_that_is_not_what_was_acknowledged(name, there, lost, problem):
    result = judged(**{name: there})
    assert result.lost[name] == lost
    (said,) = result.problems
    assert said.startswith(f"{name}: ")
    assert problem in said


def test_a_subject_that_the_guest_did_not_report():
    result = Result(seed=1, round=1, at="", load=0.0)
    result.judge(TOLD, {name: {"found": 10, "whole": True} for name in TOLD if name != "rule"})
    (said,) = result.problems
    assert said == "rule: 10 acknowledged, unreadable after the power failure: the guest said nothing of it"


def test_a_control_is_meant_to_lose():
    result = judged(**{"no-fsync": {"found": 0, "whole": True}, "no-file-fsync": {"found": 0, "error": "empty"}})
    assert result.problems == []
    assert (result.lost["no-fsync"], result.lost["no-file-fsync"]) == (10, 10)


def test_a_control_that_never_lost_makes_the_run_worthless():
    first = judged(**{name: {"found": 0, "whole": True} for name in CONTROLS[:2]})
    second = judged(**{name: {"found": 9, "whole": True} for name in CONTROLS[1:3]})
    assert inconclusive([first.as_dict(), second.as_dict()]) == [CONTROLS[3]]
    assert inconclusive([]) == list(CONTROLS)


def test_a_round_for_a_person():
    text = line(judged(rule={"found": 8, "whole": True}, **{"no-file-fsync": {"found": 0, "error": "empty"}}))
    assert "rule                     10 acknowledged, 8 found, 2 lost" in text
    assert "control no-file-fsync    10 acknowledged, unreadable, 10 lost" in text
    assert "PROBLEM rule: 10 acknowledged, 8 found: 2 lost" in text
