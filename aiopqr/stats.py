"""Counters, and the frozen snapshots that ``stats()`` returns. Times are in seconds.

The hot path only counts. To get every single measurement (for OpenTelemetry's histograms, say), add an observer to a
:class:`Histogram`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ._failures import report
from .credentials import Parity

__all__ = [
    "AccountStats",
    "ConnectorStats",
    "Histogram",
    "HistogramSnapshot",
    "PoolStats",
    "RefreshStats",
    "ReplacementStats",
    "SteppingAside",
]

# The buckets that OpenTelemetry's semantic conventions recommend for durations in seconds.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """A snapshot of a :class:`Histogram`.

    ``counts[i]`` is the number of measurements above the previous bound, up to and including ``bounds[i]`` seconds. The
    last count has no upper bound. ``total`` is the sum of all measurements, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many measurements there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean of the measurements, in seconds; 0 if there were none."""
        return self.total / self.count if self.count else 0.0


class Histogram:
    """Counts durations in fixed buckets. The ``observers`` are called with each measurement, in seconds.

    If an observer raises, that is logged and affects nobody else.
    """

    __slots__ = ("_counts", "_total", "observers")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._total = 0.0
        self.observers: tuple[Callable[[float], object], ...] = ()

    def record(self, seconds: float) -> None:
        """Add a measurement."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._total += seconds
        for observe in self.observers:
            try:
                observe(seconds)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # even CancelledError: the caller, which holds a connection, was not cancelled
                report("observer %r of a histogram failed", observe)

    def snapshot(self) -> HistogramSnapshot:
        """Return the current counts."""
        return HistogramSnapshot(BUCKETS, tuple(self._counts), self._total)


@dataclass(slots=True)
class AccountCounts:
    """A connector's counts for one account."""

    opened: int = 0
    refused: int = 0


@dataclass(slots=True)
class ConnectorCounts:
    """A connector's counts."""

    accounts: dict[Parity, AccountCounts] = field(default_factory=lambda: {p: AccountCounts() for p in Parity})
    fallbacks: int = 0
    probes: int = 0
    outages: int = 0
    failed: int = 0
    connect_time: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True, slots=True)
class SteppingAside:
    """The account that new connections avoid, because the store announces a new password for it.

    They have avoided it for ``since`` seconds, and will do so for ``ends_in`` more unless the rotation ends earlier.
    """

    parity: Parity
    username: str
    since: float
    ends_in: float


@dataclass(frozen=True, slots=True)
class RefreshStats:
    """A refresher's fetches. ``pair_age`` is the number of seconds since a fetch last confirmed the pair.

    ``stepping_aside`` is the account that new connections avoid right now, while the other one works, or None.
    """

    ok: int
    failed: int
    failures_in_a_row: int
    last_success: float | None  # Unix time
    pair_age: float | None
    stepping_aside: SteppingAside | None = None


@dataclass(frozen=True, slots=True)
class AccountStats:
    """One account, as a connector or pool sees it.

    ``refused_for`` is how long it has been refused, in seconds, or None. ``expires_in`` is the number of seconds until
    its password expires: negative if it has expired, None if it does not expire.
    """

    username: str | None
    open: int
    opened: int
    refused: int
    refused_for: float | None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class ConnectorStats:
    """A snapshot of a connector's counters. ``accounts`` has the counters of each account."""

    name: str
    accounts: Mapping[Parity, AccountStats]
    fallbacks: int
    probes: int
    outages: int
    failed: int
    connect_time: HistogramSnapshot
    refresh: RefreshStats
    all_refused: bool
    degraded: bool


@dataclass(frozen=True, slots=True)
class ReplacementStats:
    """The replacement of connections. ``why`` counts replaced connections by reason.

    ``delayed`` counts failed attempts to open a replacement, and ``delayed_by`` is why the next one has to wait, or
    None. ``overdue`` connections are now more than a second past their lifetime, because they are in use or because
    no replacement can be opened.
    """

    done: int
    delayed: int
    why: Mapping[str, int]
    delayed_by: str | None
    overdue: int


@dataclass(frozen=True, slots=True)
class PoolStats(ConnectorStats):
    """A snapshot of a pool's counters.

    ``size`` is the number of open connections, not counting the ``spare``. ``waiting`` tasks are in ``acquire()``,
    including those whose connection is being opened, which ``max_waiting`` does not limit.
    ``resetting`` connections have been released, but count as in use until they can be handed out again.
    ``not_writable`` connections were closed because their server no longer accepted writes.
    """

    min_size: int
    max_size: int
    size: int
    idle: int
    in_use: int
    resetting: int
    waiting: int
    spare: int
    acquired: int
    timeouts: int
    lost: int
    not_writable: int
    replacements: ReplacementStats
    wait_time: HistogramSnapshot
    use_time: HistogramSnapshot
