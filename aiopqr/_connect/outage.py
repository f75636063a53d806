"""Decides whether the server is down, and who may log in meanwhile. It needs no clock, loop or socket.

* An outage begins when a login fails for a transient reason, or gets no answer for longer than :attr:`Pace.patience`.
  It ends with the server's first answer, even a refusal. No matter how many connects fail, it counts as one outage.
* During an outage, connects take turns, so that they do not all storm a server that comes back. The next connect begins
  when a turn is over, or has had no answer for a while. Each failure lengthens the pause before the next turn.
* Slow is not down. A slow login continues, and after a while an extra one is tried alongside it: at most one for all
  connects together, and at most three per second. The length of "a while" depends on how long the last ten successful
  logins took.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable

from .._login import Address
from ..clock import TICK

BACKOFF_FIRST = 0.05
BACKOFF_MAX = 1.0
SILENCE = 1.0
PATIENCE_MIN = 5.0
PATIENCE_UNKNOWN = 15.0
PATIENCE_MAX = 60.0
EXTRA_SPACING = 1 / 3


class Pace:
    """How long logins take, and therefore how long to wait for an answer."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=10)
        self.slowest = 0.0  # of the last ten successful logins

    def record(self, seconds: float) -> None:
        """Record how long a successful login took."""
        self._latest.append(seconds)
        self.slowest = max(self._latest)

    @property
    def patience(self) -> float:
        """How long a login may go unanswered before that counts as an outage."""
        if not self._latest:
            return PATIENCE_UNKNOWN
        return min(max(4 * self.slowest, PATIENCE_MIN), PATIENCE_MAX)

    @property
    def silence(self) -> float:
        """How long a login may go unanswered before an extra one is tried."""
        return max(SILENCE, 1.5 * self.slowest)


class Outage:
    """Whether the server is down, and whose turn it is to try."""

    def __init__(self, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.since: float | None = None
        self.failures = 0  # in a row; simultaneous failures count once
        self._pause_until = -math.inf
        self._turns = 0  # in progress
        self._turn_began = -math.inf

    def lasts(self, now: float, seconds: float) -> bool:
        """Whether the server has been down for longer than ``seconds``."""
        return self.since is not None and now - self.since > seconds

    def failed(self, now: float) -> bool:
        """Record a login that failed for a transient reason. Returns True if an outage begins."""
        begins = self.since is None
        if begins:
            self.since = now
        if now >= self._pause_until - TICK:
            self.failures += 1
            longest = min(BACKOFF_FIRST * 2 ** min(self.failures, 10), BACKOFF_MAX)
            self._pause_until = now + self._uniform(0.5, 1.0) * longest
        return begins

    def answered(self, now: float) -> float | None:
        """Record that the server accepted or refused a login. Returns how long the outage lasted, or None."""
        lasted = None if self.since is None else now - self.since
        self.since, self.failures, self._pause_until = None, 0, -math.inf
        return lasted

    def next_turn(self, silence: float) -> float:
        """When the next turn may begin. It may begin earlier if a turn in progress ends."""
        return max(self._pause_until, self._turn_began + silence if self._turns else -math.inf)

    def begin_turn(self, now: float) -> None:
        self._turns += 1
        self._turn_began = now

    def end_turn(self) -> None:
        self._turns -= 1


class Hosts:
    """The order in which to try hosts. A host that did not answer while another one did is tried last for a minute."""

    LAST_FOR = 60.0

    def __init__(self) -> None:
        self._silent_until: dict[Address | None, float] = {}

    def in_order(self, hosts: Iterable[Address | None], now: float) -> list[Address | None]:
        if not self._silent_until:
            return list(hosts)
        return sorted(hosts, key=lambda host: self.is_silent(host, now))

    def is_silent(self, host: Address | None, now: float) -> bool:
        return self._silent_until.get(host, -math.inf) > now

    def was_silent(self, host: Address | None, now: float) -> None:
        self._silent_until = {other: until for other, until in self._silent_until.items() if until > now}
        self._silent_until[host] = now + self.LAST_FOR

    def answered(self, host: Address | None) -> None:
        self._silent_until.pop(host, None)
