"""Is the server down, and who may log in when it is silent? Decisions without a clock, a loop or a socket.

* An outage begins when a login fails for a reason that passes, or is silent for longer than :attr:`Pace.patience`. It
  ends with the first answer, a refusal included. However many connects meet it, it is one outage.
* During an outage, connects take turns, so that no herd meets a server that comes back. A turn that is over, or has
  been silent for a while, lets the next connect begin. Each failure makes the pause before the next turn longer.
* Slow is not down. A slow login goes on, and after a while an extra one is tried alongside: at most one for all
  connects together, and at most three a second. How long "a while" is depends on how long the last ten successful
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
    """How long logins take, and thus how long a silent one is left alone."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=10)
        self.slowest = 0.0  # of the last ten successful logins

    def record(self, seconds: float) -> None:
        """A login succeeded, and took that long."""
        self._latest.append(seconds)
        self.slowest = max(self._latest)

    @property
    def patience(self) -> float:
        """How long a login may be silent before it counts as an outage."""
        if not self._latest:
            return PATIENCE_UNKNOWN
        return min(max(4 * self.slowest, PATIENCE_MIN), PATIENCE_MAX)

    @property
    def silence(self) -> float:
        """How long a login may be silent before an extra one is tried."""
        return max(SILENCE, 1.5 * self.slowest)


class Outage:
    """Whether the server is down, and whose turn it is to try."""

    def __init__(self, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.since: float | None = None
        self.failures = 0  # in a row; those that come together count once
        self._pause_until = -math.inf
        self._turns = 0  # under way
        self._turn_began = -math.inf

    def lasts(self, now: float, seconds: float) -> bool:
        """Whether the server has been down for longer than that."""
        return self.since is not None and now - self.since > seconds

    def failed(self, now: float) -> bool:
        """A login failed for a reason that passes. Returns True if that begins an outage."""
        begins = self.since is None
        if begins:
            self.since = now
        if now >= self._pause_until - TICK:
            self.failures += 1
            longest = min(BACKOFF_FIRST * 2 ** min(self.failures, 10), BACKOFF_MAX)
            self._pause_until = now + self._uniform(0.5, 1.0) * longest
        return begins

    def answered(self, now: float) -> float | None:
        """The server let an account in, or refused it. Returns how long the outage lasted, None if there was none."""
        lasted = None if self.since is None else now - self.since
        self.since, self.failures, self._pause_until = None, 0, -math.inf
        return lasted

    def next_turn(self, silence: float) -> float:
        """When the next of those who take turns may begin. The end of another's turn may bring that forward."""
        return max(self._pause_until, self._turn_began + silence if self._turns else -math.inf)

    def begin_turn(self, now: float) -> None:
        self._turns += 1
        self._turn_began = now

    def end_turn(self) -> None:
        self._turns -= 1


class Hosts:
    """The order in which hosts are tried. One that was silent while another answered is tried last for a while."""

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
