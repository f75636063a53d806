"""When to fetch credentials, and whether what came back may still be installed: a state machine without clock or task.

* One fetch at a time. What asks for one *during* a fetch gets exactly one more after it, since the running one may have
  read the old value.
* A fetch that was given up (it took too long, or was cancelled) never installs its result later.
* Failures back off with jitter. Only an explicit :meth:`~aiopqr.Refresher.refresh` does not wait for that.
* A fetch that brought nothing newer for a refused account is repeated soon: the store may lag behind the database, as
  in AWS's own rotation, by up to a minute. The more depends on it, the sooner it is repeated.
* Credentials that expire are fetched again when two thirds of their time have passed, and failures are then repeated
  often enough for several tries before the end.
* Jitter spreads what a whole fleet would do at the same moment, except where a connect waits for it.
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
MARGIN = 5.0  # seconds before an expiry that are left for a fetch, where there is that much time


class Need(enum.IntEnum):
    """How much depends on newer credentials."""

    NONE = 0  # the source's own interval will do
    REFUSED = 1  # an account is refused; the other serves
    STARVED = 2  # every account is refused: connects wait
    ASKED = 3  # somebody waits for this very fetch


class RefreshPlan:
    """Decides when the next fetch starts. ``interval`` is in seconds; 0 fetches only when asked."""

    def __init__(
        self, interval: float, now: float, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._interval = interval
        self._uniform = uniform
        self.due = now
        self.started = 0  # fetches begun so far; the number of the newest is its ticket
        self.failures = 0  # since the last success
        self._repeats = 0  # fetches that brought nothing newer for a refused account
        self._flight: int | None = None
        self._backoff_until = now
        self._started_at = -math.inf
        self._wanted = Need.NONE  # asked for during the flight
        self._expires = math.inf  # the first credential of the pair

    @property
    def in_flight(self) -> bool:
        return self._flight is not None

    def request(self, need: Need, now: float) -> int:
        """Ask for a fetch that starts from now on; the ticket that it will have."""
        if self.in_flight:
            self._wanted = max(self._wanted, need)
        else:
            self.due = min(self.due, self._start_for(need, now))
        return self.started + 1

    def start(self, now: float) -> int | None:
        """The ticket of a fetch to be made now, or None: not yet due, or one is under way."""
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
        """A fetch brought a pair. False if it was given up before: then the pair must not be installed.

        ``need`` is what depends on newer credentials *with* that pair installed. ``within`` is in how many seconds the
        source expects something new, where it knows that; it has added its own jitter. ``remaining`` is in how many
        seconds the first credential expires, or None.
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
        """A fetch failed, or was given up. False if that is known already."""
        if not self._land(ticket):
            return False
        self.failures += 1
        longest = min(BACKOFF_MAX, max((self._expires - now) / 4, URGENT_MAX))
        delay = min(BACKOFF_FIRST * 2 ** min(self.failures - 1, 16), self._slowest(need, longest))
        self.due = self._backoff_until = now + self._uniform(0.5, 1.0) * delay
        self._ask_again(now)
        return True

    def abandoned(self, now: float) -> None:
        """The event loop of the fetch under way is gone, and the fetch with it: another one is due."""
        if self.in_flight:
            self._flight, self.due = None, now

    def _slowest(self, need: Need, longest: float) -> float:
        """How long to wait at most. Never longer than when all is well, and much less while connects wait."""
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
        # Connects wait. A backoff from calmer times may be long; and many connects ask, each at its own moment.
        patience = now + self._uniform(0.5, 1.0) * URGENT_MAX
        return max(now, min(self._backoff_until, patience), self._started_at + SPACING)
