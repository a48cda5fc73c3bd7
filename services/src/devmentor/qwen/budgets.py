"""Token budgets at work: a request reserves an estimate before the engine is asked and settles when it is known what
was used.

While PostgreSQL is away an instance spends what it has leased, then a bounded loan; after that a request of a key with
a budget is refused, because nobody knows what is left of it.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from devmentor.common.auth import TokenBudget
from devmentor.common.errors import ApiError
from devmentor.qwen import metrics
from devmentor.qwen.budget import DAY_S, MINUTE_S, Account, Ask, Share
from devmentor.qwen.budget_store import BudgetUnavailableError, Store

log = logging.getLogger(__name__)

_NAMES = {MINUTE_S: "minute", DAY_S: "day"}
_SHORT = {MINUTE_S: "TPM", DAY_S: "TPD"}
_REST_S = 0.5  # how long a database that did not answer is left alone
_TIDY_S = 1.0
_IDLE_S = 5.0  # after which leased tokens are returned
_ATTEMPTS = 8  # leases tried for one request whose tokens other requests of the key took first


def duration(seconds: float) -> str:
    """As OpenAI writes it in x-ratelimit-reset-*: 250ms, 12s, 6m0s, 23h59m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


class Reservation:
    """Tokens set aside for one request. Settled once; settling again does nothing."""

    def __init__(self, shares: Sequence[tuple[Account, Share]] = (), now: float = 0.0) -> None:
        self._shares = list(shares)
        self._settled = False
        self._begun = False
        self._headers = _headers([account for account, _ in shares], now) if shares else {}

    @property
    def counts(self) -> bool:
        """Whether there is any budget to settle."""
        return bool(self._shares)

    @property
    def headers(self) -> dict[str, str]:
        """x-ratelimit-*-tokens of the limit that has least left, as it was when the tokens were reserved."""
        return self._headers

    def begin(self) -> None:
        """The engine is asked now; before that a request costs nothing."""
        self._begun = True

    def settle(self, used: int) -> None:
        """The tokens that the request has cost."""
        if self._settled:
            return
        self._settled = True
        for account, share in self._shares:
            account.give_back(share, used)
            metrics.BUDGET_TOKENS.labels(_NAMES[account.period_s]).inc(used)

    def keep(self) -> None:
        """Nobody can say what was used: the estimate stands, where the engine was asked at all."""
        if self._shares:
            self.settle(self._shares[0][1].tokens if self._begun else 0)


def _headers(accounts: Sequence[Account], now: float) -> dict[str, str]:
    account = min(accounts, key=lambda each: each.remaining(now))
    return {
        "x-ratelimit-limit-tokens": str(account.limit),
        "x-ratelimit-remaining-tokens": str(account.remaining(now)),
        "x-ratelimit-reset-tokens": duration(account.ends_in_s(now)),
    }


class Budgets:
    """All keys' accounts on this instance. `store` is None where no database is configured."""

    def __init__(
        self,
        store: Store | None,
        *,
        timeout_s: float,
        lend_share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._lend_share = lend_share
        self._clock = clock
        self._accounts: dict[tuple[bytes, int], Account] = {}
        self._locks: dict[tuple[bytes, int], asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rests_until = -math.inf
        self._problem = ""

    async def reserve(self, budget: TokenBudget | None, tokens: int) -> Reservation:
        """Tokens of every limit of a key, or ApiError (429) that says which one has too few left."""
        if budget is None:
            return Reservation()
        taken: list[tuple[Account, Share]] = []
        try:
            for period_s, limit in ((MINUTE_S, budget.tokens_per_minute), (DAY_S, budget.tokens_per_day)):
                if limit is not None:
                    account = self._account(budget.key_sha256, period_s, limit)
                    taken.append((account, await self._take(budget.key_sha256, account, tokens)))
        except BaseException:
            for account, share in taken:
                account.give_back(share, 0)
            raise
        return Reservation(taken, self._clock())

    def _account(self, key: bytes, period_s: int, limit: int) -> Account:
        account = self._accounts.get((key, period_s))
        if account is None:
            account = self._accounts[key, period_s] = Account(period_s, limit)
            self._locks[key, period_s] = asyncio.Lock()
        account.limit = limit
        return account

    async def _take(self, key: bytes, account: Account, tokens: int) -> Share:
        if tokens > account.limit:
            raise self._refused(account, tokens, "too_large")
        if self._store is None:  # the tenants file was given a budget that this instance was not started for
            raise self._refused(account, tokens, "unknown")
        for _ in range(_ATTEMPTS):
            share = account.take(tokens, self._clock())
            if share is not None:
                return share
            if account.refuses(tokens, self._clock()):
                raise self._refused(account, tokens, "used_up")
            if not await self._lease(key, account, tokens):
                share = account.lend(tokens, int(account.limit * self._lend_share), self._clock())
                if share is None:
                    raise self._refused(account, tokens, "unknown")
                metrics.BUDGET_LENT.labels(_NAMES[account.period_s]).inc(share.lent)
                return share
        raise self._refused(account, tokens, "used_up")

    async def _lease(self, key: bytes, account: Account, tokens: int) -> bool:
        """Ask the row for what is missing, one request of the key at a time. False where it gives no answer."""
        with contextlib.suppress(BudgetUnavailableError):
            await self._ask(key, account, tokens)
            return True
        return False

    async def _ask(self, key: bytes, account: Account, tokens: int) -> None:
        async with self._locks[key, account.period_s]:
            now = self._clock()
            if account.held >= tokens or account.refuses(tokens, now):
                return  # another request's lease has settled it meanwhile
            await self._send(key, account, account.ask(tokens))

    async def _send(self, key: bytes, account: Account, ask: Ask) -> None:
        """Raises BudgetUnavailableError where there is no answer in time; one that comes later counts all the same."""
        period = _NAMES[account.period_s]
        if self._store is None or self._clock() < self._rests_until:
            raise BudgetUnavailableError(self._problem)
        # Cancelled neither at the deadline, as a driver takes seconds to be rid of a connection to a frozen server, nor
        # by a client that leaves: what the row has granted must arrive in the account.
        task = self._start(self._settle(self._store, key, account, ask))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
            if not done:
                raise BudgetUnavailableError(f"no answer in {self._timeout_s:g} s")
            task.result()
        except BudgetUnavailableError as error:
            metrics.BUDGET_LEASES.labels(period, "unavailable").inc()
            self._rests_until = self._clock() + _REST_S
            self._problem = str(error)
            log.warning("token budgets cannot be asked", extra={"period": period, "reason": self._problem[:300]})
            raise

    async def _settle(self, store: Store, key: bytes, account: Account, ask: Ask) -> None:
        asked_at = self._clock()
        grant = await store.lease(key, account.period_s, ask)
        account.granted(ask, grant, asked_at)
        if ask.need:
            result = "granted" if grant.tokens else "refused"
            metrics.BUDGET_LEASES.labels(_NAMES[account.period_s], result).inc()

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told by whoever waited, if anybody did

    def _refused(self, account: Account, tokens: int, reason: str) -> ApiError:
        now, period = self._clock(), _NAMES[account.period_s]
        metrics.BUDGET_REFUSED.labels(period, reason).inc()
        headers = _headers([account], now)
        if reason == "unknown":
            return ApiError(
                429,
                "budget_unknown",
                f"what is left of this key's tokens per {period} cannot be known at the moment; send the request again",
                headers={"Retry-After": "1"},
            )
        wait = account.ends_in_s(now)
        limit = f"on tokens per {period} ({_SHORT[account.period_s]}): Limit {account.limit}, Requested {tokens}"
        if reason == "too_large":
            message = f"Request too large {limit}. A shorter prompt or a smaller max_tokens is needed."
            headers["x-should-retry"] = "false"  # OpenAI's clients would send it again
            return ApiError(429, "rate_limit_exceeded", message, kind="tokens", headers=headers)
        message = f"Rate limit reached {limit}, Remaining {account.remaining(now)}. Try again in {duration(wait)}."
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
        return ApiError(429, "rate_limit_exceeded", message, kind="tokens", headers=headers)

    # -- beside the requests ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pay debts and return what is idle, for ever."""
        while True:
            await asyncio.sleep(_TIDY_S)
            try:
                await self.tidy(_IDLE_S)
            except Exception:
                log.exception("token budgets could not be tidied")

    async def tidy(self, idle_s: float) -> None:
        """Pay every debt, and return what was not used for so long. What does not arrive is tried again, but for
        returned tokens: those are lost to their window."""
        for (key, period_s), account in list(self._accounts.items()):
            async with self._locks[key, period_s]:
                ask = account.tidy(self._clock(), idle_s)
                if ask is not None:
                    with contextlib.suppress(BudgetUnavailableError):
                        await self._send(key, account, ask)

    async def drain(self) -> None:
        """At the end of the process: leases under way arrive, if soon, and everything goes back."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._timeout_s)
        await self.tidy(0.0)
        for task in set(self._tasks):
            task.cancel()
