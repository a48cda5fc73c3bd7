"""verify's judgement: a wrong answer fails, no answer is unknown, and neither is ever a pass."""

from __future__ import annotations

import ssl
import subprocess

import pytest
from verify_doubles import outcome, raising

from module_utils.devmentor.checks_base import Failed, Unanswered, poll


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Failed("wrong"), "fail"),
        (ConnectionRefusedError(111, "refused"), "fail"),
        (TimeoutError("timed out"), "unknown"),
        (Unanswered("no psql"), "unknown"),
        (KeyError("raft_info"), "unknown"),
        (ssl.SSLError("certificate verify failed"), "unknown"),
        (subprocess.TimeoutExpired("psql", 3), "unknown"),
    ],
)
def test_an_answer_that_is_wrong_fails_and_no_answer_is_unknown(error: Exception, result: str) -> None:
    assert outcome(raising(error))[0] == result


def test_evidence_is_one_line_without_secrets() -> None:
    assert outcome(lambda: "a\nb sk-very-secret") == ("pass", "a b ***")
    assert "sk-very-secret" not in outcome(raising(Failed("Bearer sk-very-secret")))[1]


def test_polling_ends_with_the_last_complaint() -> None:
    answers = iter([Failed("first"), OSError("second")])

    def function() -> str:
        error = next(answers, None)
        if error:
            raise error
        return "third"

    assert poll(function, patience=1, pause=0.001) == "third"
    with pytest.raises(Failed, match="still"):
        poll(raising(Failed("still")), patience=0.01, pause=0.005)
