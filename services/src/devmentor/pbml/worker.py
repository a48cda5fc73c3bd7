"""The worker: runs the pipeline for queued versions and watches over the queue."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from procrastinate.exceptions import ConnectorException
from prometheus_client import Counter, Gauge
from starlette.applications import Starlette

from devmentor.common import tasks
from devmentor.common.health import Check, Readiness
from devmentor.common.web import create_app
from devmentor.pbml import jobs, quota, tokens
from devmentor.pbml.api import make_embedder
from devmentor.pbml.batch import BatchManager
from devmentor.pbml.checks import dependencies
from devmentor.pbml.db import Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.embedder import TextRefused
from devmentor.pbml.index import Index
from devmentor.pbml.maintenance import Maintenance
from devmentor.pbml.pipeline import VERSIONS, Pipeline
from devmentor.pbml.settings import Settings
from devmentor.pbml.state.follow import Follower
from devmentor.pbml.store import idempotency, operations, usage, versions
from devmentor.pbml.summaries import Folder

log = logging.getLogger(__name__)

QUEUE = Gauge("pbml_queue_jobs", "Jobs by state", ["state"])
OLDEST = Gauge("pbml_queue_oldest_seconds", "Age of the oldest acknowledged version that is not live")
FAILED = Gauge("pbml_failed_versions", "Versions that were given up, with their reason in the ledger")
WORKERS = Gauge("pbml_workers_alive", "Job loops of all workers with a heartbeat in the last 30 s")
RESTARTS = Counter("pbml_worker_loop_restarts", "Times that the job loop ended by an error and was started again")
STALLED = Counter("pbml_stalled_jobs", "Jobs of lost workers that were queued again")
LOST = Counter("pbml_lost_jobs", "Jobs whose end was not written, queued again")

_WATCH_EVERY_S = 5.0
_REQUEUE_S = 10.0
_STALLED_AFTER_S = 30.0
_STUCK_AFTER_S = 60.0
_FORGET_EVERY_S = 3600.0
_SELDOM_S = 10.0  # the loops are woken


class Worker:
    """The job loop, the watch over it, maintenance, and what they need."""

    def __init__(self, settings: Settings) -> None:
        self._s = settings
        self.database = Database(settings, "pbml-worker")
        self.index = Index(settings)
        self.embedder = make_embedder(settings)
        self._texts = BatchManager(
            "embed",
            self.embedder.embed,
            own_fault=lambda error: isinstance(error, TextRefused),
            max_size=settings.embedding_batch_size,
            max_age_s=settings.embedding_batch_age_ms / 1000,
            in_flight=settings.embedding_concurrency,
        )
        self._pipeline = Pipeline(
            self.database, self.index, self._texts.submit, settings.chunk_chars, settings.job_timeout_s
        )
        self._queue = jobs.Connector(2 * settings.database_timeout_s)
        self._app = jobs.create(self._queue)
        self._app.task(name=jobs.TASK, queue=jobs.QUEUE, pass_context=True, retry=jobs.Retry())(self._process)
        self._maintenance = Maintenance(settings, self.database, self.index)
        self._folder = (
            Folder(settings, self.database, tokens.counter(settings.tokenizer_file, settings.bytes_per_token))
            if settings.summary_urls
            else None
        )
        directory = settings.state_dir
        self._follower = Follower(settings, self.database, directory) if directory is not None else None
        self._running: set[str] = set()
        self._worker_ids: dict[str, int] = {}
        self._under_way: set[int] = set()
        self._suspects: set[tuple[int, int]] = set()
        self._watched_at = time.monotonic()

    @property
    def looping(self) -> bool:
        """Whether a job loop runs at this moment."""
        return bool(self._running)

    def alive(self) -> bool:
        """For the watchdog: the watch came round lately. An absent database is not a reason to be killed."""
        return time.monotonic() - self._watched_at < _STUCK_AFTER_S

    @asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Jobs are taken while the application serves; at the end those under way are finished."""
        await self.database.open()
        await self.embedder.open()
        async with self._app.open_async(self.database.pool):
            loops = self._loops()
            running = [
                asyncio.create_task(self._look(), name="look"),
                asyncio.create_task(self._watch(), name="watch"),
                asyncio.create_task(self._maintenance.run(), name="maintenance"),
            ]
            if self._folder is not None:
                running.append(asyncio.create_task(self._folder.run(), name="summaries"))
            if self._follower is not None:
                running.append(asyncio.create_task(self._follower.run(), name="state"))
            try:
                yield
            finally:
                # Told a second time it would leave the jobs that it waits for.
                await tasks.end(*loops, again_after_s=self._s.shutdown_grace_s + 5)
                await tasks.end(*running)
                await self._pipeline.close()
                await self._texts.close()
        await self.embedder.close()
        await self.index.close()
        await self.database.close()

    async def _note(self, process: Callable[[], Awaitable[Any]], context: Any, worker: Any) -> Any:
        """procrastinate's middleware: which jobs run here, and under which worker's id."""
        self._worker_ids[worker.worker_name] = worker.worker_id
        self._under_way.add(context.job.id)
        try:
            return await process()
        finally:
            self._under_way.discard(context.job.id)

    async def _process(self, context: Any, tenant: str, document_id: str, version: int) -> None:
        try:
            await self._pipeline.run(tenant, document_id, version)
        except jobs.DEPENDENCY_AWAY as error:
            log.warning("job waits for a dependency", extra={"reason": str(error), "document": document_id})
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("version failed", extra={"tenant": tenant, "document": document_id, "version": version})
            failed = await self.database.write(
                lambda c: versions.count_failure(c, tenant, document_id, version, reason, self._s.job_max_attempts)
            )
            if failed.value is not None:
                log.error("version given up", extra={"tenant": tenant, "document": document_id, "version": version})
                VERSIONS.labels(failed.value, "failed").inc()
                raise jobs.GivenUp(reason) from error
            raise

    def _loops(self) -> list["asyncio.Task[None]"]:
        """procrastinate's worker fetches one job after the other: several have more documents to process together."""
        count = min(self._s.worker_loops, self._s.worker_concurrency)
        shares = [len(range(n, self._s.worker_concurrency, count)) for n in range(count)]
        return [
            asyncio.create_task(self._loop(f"{self._s.replica}/{n}", shares[n]), name=f"jobs-{n}") for n in range(count)
        ]

    async def _look(self) -> None:
        """Wake one loop after the other: whichever of them are full, the next one looks a moment later."""
        while True:
            await self._queue.wake()
            await asyncio.sleep(self._s.worker_poll_s)

    async def _loop(self, name: str, concurrency: int) -> None:
        """procrastinate's worker ends when it can not reach the database; it is started again here."""
        pause = 0.5
        while True:
            started = time.monotonic()
            try:
                self._running.add(name)
                await self._app.run_worker_async(
                    queues=[jobs.QUEUE],
                    name=name,
                    concurrency=concurrency,
                    fetch_job_polling_interval=_SELDOM_S,
                    listen_notify=True,
                    install_signal_handlers=False,
                    shutdown_graceful_timeout=self._s.shutdown_grace_s,
                    stalled_worker_timeout=_STALLED_AFTER_S,
                    delete_jobs="successful",
                    worker_middleware=[self._note],
                )
            except Exception as error:
                log.warning("job loop ended", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
            finally:
                self._running.discard(name)
            RESTARTS.inc()
            pause = 0.5 if time.monotonic() - started > 30 else min(pause * 2, 10)
            await asyncio.sleep(pause)

    async def _watch(self) -> None:
        """Queue the jobs of lost workers again, forget old keys, measure the queue."""
        forget_at = time.monotonic()
        while True:
            with contextlib.suppress(DatabaseUnavailable, OutcomeUnknown, ConnectorException, TimeoutError):
                # A row that a hung commit holds must not hold the watch as well.
                async with asyncio.timeout(_REQUEUE_S):
                    await self._requeue_stalled()
                    await self._requeue_lost()
                if time.monotonic() >= forget_at:
                    await self.database.write(lambda c: idempotency.forget_keys(c, self._s.idempotency_hours))
                    forget_at = time.monotonic() + _FORGET_EVERY_S
                await self._measure()
            self._watched_at = time.monotonic()
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _requeue_stalled(self) -> None:
        manager = self._app.job_manager
        for job in await manager.get_stalled_jobs(seconds_since_heartbeat=_STALLED_AFTER_S):
            # Every worker looks; the one that comes second finds the job not in "doing" any more.
            with contextlib.suppress(ConnectorException):
                await manager.retry_job(job)
                STALLED.inc()
                log.warning("stalled job queued again", extra={"job": job.id, "lock": job.lock})

    async def _requeue_lost(self) -> None:
        """Queue jobs again that are ours by the queue's word and do not run here, seen so twice in a row.

        procrastinate writes a job's end once. Where that write is lost, the job stays "doing" under a live worker, and
        its lock holds up every later version of the document. The pipeline bears a job that runs once more.
        """
        manager = self._app.job_manager
        listed = await manager.list_jobs_async(queue=jobs.QUEUE, status="doing")
        ours = [job for job in listed if job.worker_id in self._worker_ids.values()]
        idle = {(job.id, job.attempts): job for job in ours if job.id not in self._under_way}
        for job in [job for key, job in idle.items() if key in self._suspects]:
            # Its end may have been written by now after all; then there is nothing to retry.
            with contextlib.suppress(ConnectorException):
                await manager.retry_job(job)
                LOST.inc()
                log.warning("job whose end was not written queued again", extra={"job": job.id, "lock": job.lock})
        self._suspects = set(idle)

    async def _measure(self) -> None:
        async with self.database.read() as c:
            state = await operations.queue_state(c)
            used = await usage.read_all(c)
        quota.measure(self._s.quotas, used)
        QUEUE.labels("todo").set(state["todo"])
        QUEUE.labels("doing").set(state["doing"])
        OLDEST.set(state["oldest_s"])
        FAILED.set(state["failed"])
        WORKERS.set(state["workers"])


def application(settings: Settings) -> tuple[Starlette, Worker]:
    """The worker as an ASGI application with the operator's endpoints only."""
    worker = Worker(settings)

    async def loop() -> str:
        if not worker.looping:
            raise RuntimeError("the job loop waits to be started again")
        return "running"

    name = f"{settings.replica}/worker"
    readiness = Readiness(
        "pbml-worker",
        [*dependencies(settings, worker.database, worker.index, worker.embedder, name), Check("loop", loop)],
    )
    return create_app("pbml-worker", readiness=readiness, lifespan=worker.running), worker
