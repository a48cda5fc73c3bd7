"""Which failures are tried again, and when."""

import asyncio
from types import SimpleNamespace

import procrastinate
import pytest
from procrastinate.exceptions import ConnectorException

from devmentor.pbml.db import DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import EmbedderUnavailable, TextRefused
from devmentor.pbml.index import IndexUnavailable
from devmentor.pbml.jobs import BoundedConnector, GivenUp, Retry


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


@pytest.mark.parametrize("name", ["execute_query_async", "execute_query_one_async", "execute_query_all_async"])
async def test_a_statement_on_a_pooler_that_stands_still_ends_as_procrastinates_own_error(monkeypatch, name):
    ended = []

    async def still(_self, _query, **_arguments):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    monkeypatch.setattr(procrastinate.PsycopgConnector, name, still)
    async with asyncio.timeout(2):
        with pytest.raises(ConnectorException, match=r"no answer within 0\.05 s"):
            await getattr(BoundedConnector(0.05), name)("SELECT 1")
    assert ended == [name]


async def test_an_answer_in_time_passes_the_limit(monkeypatch):
    async def rows(_self, query, **arguments):
        return [{"query": query, **arguments}]

    monkeypatch.setattr(procrastinate.PsycopgConnector, "execute_query_all_async", rows)
    assert await BoundedConnector(1).execute_query_all_async("SELECT 1", a=2) == [{"query": "SELECT 1", "a": 2}]
