"""The worker's third loop: follow the ledger, fold conversations while the engines are idle, check what was made."""

import asyncio
import logging
import os
import time
from functools import partial

from prometheus_client import Counter, Gauge

from devmentor.pbml.db import Connection, Database, DatabaseUnavailable, OutcomeUnknown
from devmentor.pbml.settings import Settings
from devmentor.pbml.store import folds, maintenance, summaries
from devmentor.pbml.store.folds import Fold
from devmentor.pbml.store.summaries import FIRST, Key, Overtaken, Range
from devmentor.pbml.summaries.engine import Busy, EngineAway, Refused, SummaryEngine
from devmentor.pbml.summaries.load import LoadUnknown
from devmentor.pbml.summaries.plan import Work, fitted, next_work
from devmentor.pbml.summaries.prompt import cleaned, messages
from devmentor.pbml.tokens import TokenCounter

log = logging.getLogger(__name__)

MADE = Counter("pbml_summaries_made", "Summaries that were written, by level", ["level"])
RUNS = Counter("pbml_summary_runs", "Conversations that were looked at, by how that went", ["result"])
WITHDRAWN = Counter("pbml_summaries_withdrawn", "Summaries that a check found to be of something else than is there")
DUE = Gauge("pbml_summary_due", "Conversations that wait to be looked at for summaries")
PARKED = Gauge("pbml_summary_parked", "Conversations whose summaries were given up, with their reason in the database")
IDLE = Gauge("pbml_summary_engine_idle", "1 where the engines were idle when last looked at, 0 where not or not known")
for _result in ("made", "nothing", "busy", "overtaken", "away", "failed", "parked"):
    RUNS.labels(_result)

_TASK = "summaries"
_LEASE_S = 60.0
_LEDGER_ROWS = 500
_FOLLOW_S = 5.0
_CHECKED = 20
_ROUND_S = 30.0
_LONGEST_PAUSE_S = 300.0
_LONGEST_DELAY_S = 6 * 3600.0
_AWAY = (DatabaseUnavailable, OutcomeUnknown)


class Folder:
    """One summary at a time, of one conversation after the other."""

    def __init__(self, settings: Settings, database: Database, counter: TokenCounter) -> None:
        self._s = settings
        self._db = database
        self._counter = counter
        self._engine = SummaryEngine(settings)
        self._holder = f"{settings.replica}/{os.getpid()}"
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled. What is away is tried again, ever more seldom."""
        await self._engine.open()
        try:
            while True:
                try:
                    await self.turn()
                except _AWAY as error:
                    log.info("summaries wait", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
                except Exception:
                    self._failures += 1
                    log.exception("summaries failed")
                await asyncio.sleep(self.pause_s)
        finally:
            await self._engine.close()

    @property
    def pause_s(self) -> float:
        """Seconds until the next round: twice as many after each failure in a row."""
        return float(min(self._s.summary_every_s * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S))

    async def turn(self) -> None:
        """One round: conversations as long as there is something to do and the engines are idle."""
        await self._follow()
        until = time.monotonic() + _ROUND_S
        while time.monotonic() < until and await self.step():
            pass

    # -- the ledger, one worker at a time -----------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Note which conversations have new turns, and check some summaries against what they are made of."""
        async with self._db.read() as c:
            counts = await folds.counts(c)
        DUE.set(counts.due)
        PARKED.set(counts.parked)
        task = (await self._db.write(lambda c: maintenance.claim(c, _TASK, self._holder, _LEASE_S))).value
        if task is None:
            return
        seq, checked = int(task.state.get("seq", 0)), _key(task.state.get("checked"))
        until = time.monotonic() + _FOLLOW_S
        while (followed := await self._follow_on(seq, checked)) != seq and time.monotonic() < until:
            seq = followed
        state = {"seq": followed, "checked": list(await self._check(checked))}
        await self._db.write(lambda c: maintenance.keep(c, _TASK, self._holder, state, _LEASE_S))

    async def _follow_on(self, seq: int, checked: Key) -> int:
        """A page of the ledger; the seq to go on after."""

        async def work(c: Connection) -> int:
            followed = await folds.follow(c, seq, _LEDGER_ROWS, self._s.summary_settled_s, self._s.summary_keep_turns)
            state = {"seq": followed, "checked": list(checked)}
            await maintenance.keep(c, _TASK, self._holder, state, _LEASE_S)
            return followed

        return (await self._db.write(work, timeout_s=30)).value

    async def _check(self, after: Key) -> Key:
        """Withdraw summaries that are not of what is there any more, whoever changed it. Where to go on after."""
        async with self._db.read(timeout_s=30) as c:
            found = await summaries.page(c, after, _CHECKED)
        for key, last_seq, sources in found:
            tenant, conversation_id, level, first_seq = key
            fold, where = Fold(tenant, conversation_id, 0, 0, 0), Range(level, first_seq, last_seq)

            async def differs(c: Connection, fold: Fold = fold, where: Range = where, made_of: bytes = sources) -> bool:
                return summaries.digest_of(await summaries.parts(c, fold, where, 0)) != made_of

            async with self._db.read(timeout_s=30) as c:
                suspect = await differs(c)
            if suspect:
                again = partial(summaries.withdraw_if, fold=fold, where=where, differs=differs)
                WITHDRAWN.inc((await self._db.write(again)).value)
        return found[-1][0] if len(found) == _CHECKED else FIRST

    # -- one conversation ---------------------------------------------------------------------------------------------

    async def step(self) -> bool:
        """Look at the conversation that is due longest. False where the round is over."""
        lease_s = self._s.summary_timeout_s + 60
        fold = (await self._db.write(lambda c: folds.claim(c, self._holder, lease_s))).value
        if fold is None:
            return False
        result = "away"
        try:
            result = await self._fold(fold)
        finally:
            RUNS.labels(result).inc()
        return result in ("made", "nothing", "overtaken")

    async def _fold(self, fold: Fold) -> str:
        """Make the next summary of a claimed conversation and give it back; how that went."""
        try:
            return await self._make(fold)
        except _AWAY:
            raise
        except Refused as error:
            return await self._failed(fold, str(error))
        except Exception as error:
            # Whatever else a conversation brings about, it is not tried for ever either.
            log.exception("summary failed", extra={"tenant": fold.tenant, "conversation": fold.conversation_id})
            return await self._failed(fold, f"{type(error).__name__}: {error}")

    async def _make(self, fold: Fold) -> str:
        async with self._db.read(timeout_s=30) as c:
            work = await next_work(c, fold, self._s, self._counter)
        if work is None:
            await self._release(fold, None)
            return "nothing"
        if not work.empty and not await self._idle():
            await self._release(fold, 0)
            return "busy"
        try:
            body = "" if work.empty else await self._said(work)
        except EngineAway as error:
            self._failures += 1
            log.warning("no engine for summaries", extra={"reason": str(error)[:300]})
            await self._release(fold, self.pause_s)
            return "away"
        except Busy:
            await self._release(fold, 0)
            return "busy"
        self._failures = 0
        try:
            await self._write(fold, work, body)
        except Overtaken as error:
            log.info("summary thrown away", extra={"reason": str(error)})
            await self._release(fold, 0)
            return "overtaken"
        await self._release(fold, 0, worked=True)
        return "made"

    async def _said(self, work: Work) -> str:
        parts = fitted([part for part in work.sources if part.text], self._s.summary_input_tokens, self._counter)
        said = await self._engine.summarize(messages(parts, self._s.summary_max_tokens))
        body = cleaned(said, self._s.summary_max_tokens)
        if not body:
            raise Refused("the model said nothing")
        return body

    async def _write(self, fold: Fold, work: Work, body: str) -> None:
        model = self._s.summary_model if body else None

        async def write(c: Connection) -> None:
            await summaries.write(c, fold, self._holder, work.where, work.sources, body, model)

        await self._db.write(write)
        MADE.labels(str(work.where.level)).inc()
        log.info(
            "summary written",
            extra={
                "tenant": fold.tenant,
                "summary_level": work.where.level,
                "parts": len(work.sources),
                "chars": len(body),
            },
        )

    async def _failed(self, fold: Fold, reason: str) -> str:
        self._failures += 1
        delay_s = min(60.0 * 2 ** min(fold.failed_runs, 10), _LONGEST_DELAY_S)
        most = self._s.summary_max_attempts
        parked = await self._db.write(lambda c: folds.fail(c, fold, self._holder, reason, again_s=delay_s, most=most))
        about = {"tenant": fold.tenant, "conversation": fold.conversation_id, "reason": reason[:300]}
        if parked.value:
            log.error("summaries of a conversation given up", extra=about)
            return "parked"
        log.warning("summary failed", extra=about)
        return "failed"

    async def _release(self, fold: Fold, again_s: float | None, *, worked: bool = False) -> None:
        await self._db.write(lambda c: folds.release(c, fold, self._holder, again_s=again_s, worked=worked))

    async def _idle(self) -> bool:
        """Where that is not known, no."""
        try:
            idle = await self._engine.idle()
        except LoadUnknown as error:
            log.info("load of the engines not known", extra={"reason": str(error)[:300]})
            idle = False
        IDLE.set(idle)
        return idle


def _key(stored: list[object] | None) -> Key:
    if stored is None:
        return FIRST
    tenant, conversation_id, level, first_seq = stored
    return str(tenant), str(conversation_id), int(str(level)), int(str(first_seq))
