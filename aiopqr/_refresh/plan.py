"""When to fetch credentials, and whether a result may still be installed: a state machine without clock or task.

* There is one fetch at a time. Requests *during* a fetch cause exactly one more after it, since the running one may
  have read the old value.
* A fetch that was abandoned (it took too long, or was cancelled) never installs its result later.
* After a failure, the next fetch waits for a backoff with jitter. Only an explicit
  :meth:`~aiopqr.Refresher.refresh` skips that wait.
* If an account is refused and a fetch brings nothing newer for it, the next fetch comes soon: the store may lag behind
  the database (by up to a minute in AWS's own rotation). The more urgent the need, the sooner it comes.
* Credentials that expire are fetched again after two thirds of their lifetime. If that fails, retries are frequent
  enough that several fit in before the expiry.
* Jitter spreads fetches that a whole fleet would otherwise make at the same moment, unless a connect is waiting.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable

BACKOFF_FIRST = 0.5
BACKOFF_MAX = 60.0
REPEAT_MAX = 30.0
URGENT_MAX = 2.0
SPREAD_MAX = 1.0
SPACING = 0.2
MARGIN = 5.0  # fetch at least this many seconds before an expiry, if there is that much time


class Need(enum.IntEnum):
    """How urgently newer credentials are needed."""

    NONE = 0  # routine fetches are enough
    REFUSED = 1  # one account is refused, the other works
    STARVED = 2  # every account is refused, so connects are waiting
    ASKED = 3  # refresh() is waiting for this fetch


class RefreshPlan:
    """Decides when the next fetch starts. ``interval`` is in seconds; 0 fetches only when asked."""

    def __init__(
        self, interval: float, now: float, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._interval = interval
        self._uniform = uniform
        self.due = now
        self.started = 0  # how many fetches have started; a fetch's number is its ticket
        self.failures = 0  # since the last success
        self._repeats = 0  # fetches that brought nothing newer for a refused account
        self._flight: int | None = None  # the ticket of the running fetch
        self._backoff_until = now
        self._started_at = -math.inf
        self._wanted = Need.NONE  # requested during the running fetch
        self._expires = math.inf  # when the first credential of the pair expires

    @property
    def in_flight(self) -> bool:
        return self._flight is not None

    def request(self, need: Need, now: float) -> int:
        """Request a fetch that has not started yet, and return the ticket that it will have."""
        if self.in_flight:
            self._wanted = max(self._wanted, need)
        else:
            self.due = min(self.due, self._start_for(need, now))
        return self.started + 1

    def start(self, now: float) -> int | None:
        """Start a fetch and return its ticket, or return None if none is due or one is already running."""
        if self.in_flight or now < self.due:
            return None
        self.started += 1
        self._flight = self.started
        self._started_at = now
        self.due = math.inf
        return self._flight

    def succeeded(
        self, ticket: int, need: Need, now: float, *, within: float | None = None, remaining: float | None = None
    ) -> bool:
        """Record that a fetch brought a pair. Returns False if the fetch was abandoned; then do not install the pair.

        ``need`` is how urgent newer credentials are once that pair is installed. ``within`` is the number of seconds
        after which the source expects a change (jitter included), or None if it does not know. ``remaining`` is the
        number of seconds until the first credential expires, or None.
        """
        if not self._land(ticket):
            return False
        self.failures = 0
        self._backoff_until = now
        if need is Need.NONE:
            self._repeats = 0
            self.due = now + self._uniform(0.8, 1.0) * self._interval if self._interval else math.inf
        else:
            slowest = self._slowest(need, REPEAT_MAX)
            self.due = now + self._uniform(0.5, 1.0) * min(BACKOFF_FIRST * 2**self._repeats, slowest)
            self._repeats = min(self._repeats + 1, 16)
        if within is not None:
            self.due = min(self.due, now + max(within, SPACING))
        self._expires = math.inf if remaining is None else now + remaining
        if remaining is not None:
            early = min(self._uniform(0.6, 0.7) * remaining, max(remaining - MARGIN, remaining / 2))
            self.due = min(self.due, now + max(early, BACKOFF_FIRST))
        self._ask_again(now)
        return True

    def failed(self, ticket: int, need: Need, now: float) -> bool:
        """Record that a fetch failed or was abandoned. Returns False if that is known already."""
        if not self._land(ticket):
            return False
        self.failures += 1
        longest = min(BACKOFF_MAX, max((self._expires - now) / 4, URGENT_MAX))
        delay = min(BACKOFF_FIRST * 2 ** min(self.failures - 1, 16), self._slowest(need, longest))
        self.due = self._backoff_until = now + self._uniform(0.5, 1.0) * delay
        self._ask_again(now)
        return True

    def abandoned(self, now: float) -> None:
        """Record that the event loop is gone, and any running fetch with it. Another fetch is due then."""
        if self.in_flight:
            self._flight, self.due = None, now

    def _slowest(self, need: Need, longest: float) -> float:
        """The longest time to wait: never longer than the routine interval, and much less while connects wait."""
        interval = self._interval or math.inf
        return min(URGENT_MAX, 0.3 * interval) if need is Need.STARVED else min(longest, interval)

    def _land(self, ticket: int) -> bool:
        if ticket != self._flight:
            return False
        self._flight = None
        return True

    def _ask_again(self, now: float) -> None:
        wanted, self._wanted = self._wanted, Need.NONE
        if wanted:
            self.due = min(self.due, self._start_for(wanted, now))

    def _start_for(self, need: Need, now: float) -> float:
        if need is Need.ASKED:
            return now
        if need is Need.REFUSED:
            spread = self._uniform(0.0, min(SPREAD_MAX, self._interval / 10))
            return max(now + spread, self._backoff_until, self._started_at + SPACING)
        # Connects are waiting, so cut short a long backoff. SPACING covers many connects that ask one after another.
        patience = now + self._uniform(0.5, 1.0) * URGENT_MAX
        return max(now, min(self._backoff_until, patience), self._started_at + SPACING)
