"""Token budgets of keys: the decisions, without I/O. docs/qwen.md has the bound and why it holds.

A limit is one row in PostgreSQL: the window (a minute or a day of the database's clock) and the tokens taken of it. No
request touches the row: an instance leases a block of tokens and spends that. Blocks shrink with what is left (guided
self-scheduling: Polychronopoulos and Kuck, 1987), so that little is stranded on an instance when another one needs it.

What an instance spent without a lease, because an answer was longer than estimated or because the database was away, it
owes: debts are paid to the row before the next lease, and what exceeds a window's limit is taken off the next window.
"""

import math
from dataclasses import dataclass

_LARGEST_BLOCK = 32  # a block is at most this part of the limit,
_BLOCK_OF_LEFT = 8  # and this part of what is left
_BELIEVED_S = 1.0  # how long a refusal is repeated without asking the row again

MINUTE_S = 60
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Row:
    """A limit's state. `window` counts periods since 1970; `taken` are tokens leased or spent of this window; `limit`
    is the highest that was in force in it, None where the release before this one wrote the row."""

    window: int
    taken: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What an instance wants of a row: to pay `owed`, to return `back` tokens of `window`, and to lease `need` tokens
    or, where there is plenty, a block."""

    limit: int
    need: int
    owed: int
    back: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The row's answer. `tokens` is 0 where less than the need is left; `left` is what others may still lease."""

    tokens: int
    left: int
    window: int
    ends_in_s: float


def decide(row: Row | None, now_s: float, period_s: int, ask: Ask) -> tuple[Row, Grant]:
    """The row after an ask, and its answer; `now_s` is the database's clock, in seconds since 1970.

    A clock that went back, because another server is the primary, does not bring a window back.
    """
    window = int(now_s // period_s)
    taken, limit = 0, ask.limit
    if row is not None and row.window >= window:
        window, taken, limit = row.window, row.taken, max(ask.limit, row.limit or 0)
    elif row is not None:
        # What went beyond the limit is paid for in the windows that follow; beyond the limit of then: one that was
        # lowered since makes no debt of what was allowed.
        debt = max(0, row.taken - (row.limit or ask.limit))
        taken = max(0, debt - ask.limit * (window - row.window - 1))
    taken += ask.owed
    if ask.window == window:
        taken = max(0, taken - ask.back)
    free = max(0, ask.limit - taken)
    tokens = 0
    if 0 < ask.need <= free:
        tokens = max(ask.need, min(ask.limit // _LARGEST_BLOCK, free // _BLOCK_OF_LEFT))
    ends_in_s = max(0.0, (window + 1) * period_s - now_s)
    return Row(window, taken + tokens, limit), Grant(tokens, free - tokens, window, ends_in_s)


@dataclass(frozen=True, slots=True)
class Share:
    """Tokens reserved of one account: in which window, and how many of them were lent."""

    window: int | None
    tokens: int
    lent: int = 0


class Account:
    """What one instance holds and owes of one limit. `now` is any clock that only goes forward, in seconds."""

    def __init__(self, period_s: int, limit: int) -> None:
        self.period_s = period_s
        self.limit = limit
        self.held = 0
        self.owed = 0
        self.used_at = 0.0
        self._window: int | None = None
        self._ends_at = 0.0
        self._left = limit
        self._answered_at = -math.inf

    def take(self, tokens: int, now: float) -> Share | None:
        """Tokens of what is leased; None where that is not enough."""
        self._turn(now)
        self.used_at = now
        if tokens > self.held:
            return None
        self.held -= tokens
        return Share(self._window, tokens)

    def lend(self, tokens: int, most: int, now: float) -> Share | None:
        """Tokens while the row cannot be asked: what is leased, and a loan for the rest.

        None where more than `most` would be owed, or the row said of this window that less is left.
        """
        self._turn(now)
        loan = max(0, tokens - self.held)  # meanwhile others may have given back enough
        if self.owed + loan > most or loan > self._left:
            return None
        self.held -= tokens - loan
        self.owed += loan
        return Share(self._window, tokens, loan)

    def give_back(self, share: Share, used: int) -> None:
        """Settle a share: `used` may be more or less than was reserved."""
        spare = share.tokens - used
        if spare < 0:
            paid = min(-spare, self.held)
            self.held -= paid
            self.owed += -spare - paid
            return
        unlent = min(spare, share.lent, self.owed)
        self.owed -= unlent
        if share.window == self._window and self._window is not None:
            self.held += spare - unlent

    def ask(self, need: int) -> Ask:
        """For a lease of what is missing to `need`; its answer belongs to `granted`."""
        return Ask(self.limit, max(0, need - self.held), self.owed)

    def granted(self, ask: Ask, grant: Grant, asked_at: float) -> None:
        """The row has committed this answer. Counted from the asking, a window never ends later than the row's."""
        self.owed -= ask.owed
        # Given back while the debt was being paid, or paid twice: the row has it, so it may be spent.
        paid_ahead, self.owed = max(0, -self.owed), max(0, self.owed)
        if self._window is not None and grant.window < self._window:
            return  # an answer that came late
        if grant.window != self._window:
            self.held = 0
            self._window = grant.window
            self._ends_at = asked_at + grant.ends_in_s
        self.held += grant.tokens + paid_ahead
        if asked_at >= self._answered_at:
            self._left = grant.left
            self._answered_at = asked_at

    def refuses(self, need: int, now: float) -> bool:
        """Whether the row said a moment ago that less than this is left."""
        self._turn(now)
        return now - self._answered_at < _BELIEVED_S and need - self.held > self._left

    def tidy(self, now: float, idle_s: float) -> Ask | None:
        """Debts to pay and, where nothing was used for a while, tokens to return, no longer held here; None: neither.

        Returned tokens are let go before the row has them: where it does not get them, nobody spends them.
        """
        self._turn(now)
        back = 0
        if now - self.used_at >= idle_s:
            back, self.held = self.held, 0
        if not back and not self.owed:
            return None
        return Ask(self.limit, 0, self.owed, back, self._window)

    def remaining(self, now: float) -> int:
        """Tokens left of the limit as far as this instance knows."""
        self._turn(now)
        return max(0, self.held + self._left - self.owed)

    def ends_in_s(self, now: float) -> float:
        """Seconds until the window ends; the whole period where none is known."""
        return self._ends_at - now if self._window is not None else float(self.period_s)

    def _turn(self, now: float) -> None:
        """A window that is over takes what is held of it along."""
        if self._window is not None and now >= self._ends_at:
            self._window = None
            self.held = 0
            self._left = self.limit
            self._answered_at = -math.inf
