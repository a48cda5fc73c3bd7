"""Which failures are tried again, and when."""

import asyncio
from types import SimpleNamespace

import pytest

from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.jobs import GivenUp, Retry


def decide(error: BaseException, attempts: int):
    return Retry().get_retry_decision(exception=error, job=SimpleNamespace(attempts=attempts))


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable(), OutcomeUnknown(), EmbedderUnavailable(), IndexUnavailable(), TextRefused()]
)
@pytest.mark.parametrize(("attempts", "seconds"), [(0, 1), (3, 8), (5, 30), (1000, 30)])
def test_the_pause_grows_to_a_bound(monkeypatch, error, attempts, seconds):
    monkeypatch.setattr("devmentor.pbml.jobs.RetryDecision", lambda retry_in: retry_in)
    assert decide(error, attempts) == {"seconds": seconds}


@pytest.mark.parametrize("attempts", [0, 1000])
def test_a_version_that_was_given_up_is_left(attempts):
    assert decide(GivenUp("no"), attempts) is None


def test_a_stopping_worker_gives_the_job_back():
    assert decide(asyncio.CancelledError(), 1000) is not None
