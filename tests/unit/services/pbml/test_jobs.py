"""Which failures are tried again, and for how long."""

import asyncio
from types import SimpleNamespace

import pytest

from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.jobs import Retry


def decide(error: BaseException, attempts: int):
    return Retry(max_attempts=5).get_retry_decision(exception=error, job=SimpleNamespace(attempts=attempts))


@pytest.mark.parametrize("error", [DatabaseUnavailable(), OutcomeUnknown(), EmbedderUnavailable(), IndexUnavailable()])
@pytest.mark.parametrize("attempts", [0, 5, 1000])
def test_an_absent_dependency_is_waited_for(error, attempts):
    assert decide(error, attempts) is not None


@pytest.mark.parametrize(("attempts", "again"), [(0, True), (3, True), (4, False), (5, False)])
def test_a_bad_document_is_given_up(attempts, again):
    assert (decide(TextRefused("no"), attempts) is not None) is again


def test_a_stopping_worker_gives_the_job_back():
    assert decide(asyncio.CancelledError(), 1000) is not None
