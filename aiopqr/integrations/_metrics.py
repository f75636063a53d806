"""The table of metrics: their names, and which part of a pool's snapshot each one shows.

The ``db.client.connection.*`` metrics are those of OpenTelemetry's semantic conventions. The ``aiopqr.*`` metrics show
what the conventions do not cover.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..credentials import Parity
from ..stats import BUCKETS, AccountStats, PoolStats

Values = Iterable[tuple[float, Mapping[str, str]]]

_PLAIN: Mapping[str, str] = {}
_STATE = "db.client.connection.state"
_ACCOUNT = "aiopqr.account"
_OUTCOME = "aiopqr.outcome"
_REASON = "aiopqr.reason"


class InstrumentKind(enum.Enum):
    """What an instrument's values mean over time."""

    COUNTER = "only grows"
    UP_DOWN = "grows and shrinks, and can be summed over processes"
    GAUGE = "grows and shrinks"
    HISTOGRAM = "single measurements"


def _nothing(stats: PoolStats) -> Values:
    return ()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name and unit and, if it is observed, how to read its values and attributes from a snapshot."""

    name: str
    kind: InstrumentKind
    unit: str
    description: str
    read: Callable[[PoolStats], Values] = _nothing
    buckets: tuple[float, ...] | None = None


def _one(read: Callable[[PoolStats], float]) -> Callable[[PoolStats], Values]:
    return lambda stats: [(read(stats), _PLAIN)]


def _by_account(read: Callable[[AccountStats], float | None]) -> Callable[[PoolStats], Values]:
    """One value for each account of the pair, unless it is None."""

    def values(stats: PoolStats) -> Values:
        accounts = ((parity, stats.accounts[parity]) for parity in Parity)
        found = ((read(account), {_ACCOUNT: str(parity)}) for parity, account in accounts if account.username)
        return [(value, labels) for value, labels in found if value is not None]

    return values


def _states(stats: PoolStats) -> Values:
    return [(stats.idle, {_STATE: "idle"}), (stats.in_use, {_STATE: "used"})]


def _outcomes(stats: PoolStats) -> Values:
    return [(stats.refresh.ok, {_OUTCOME: "ok"}), (stats.refresh.failed, {_OUTCOME: "failed"})]


def _reasons(stats: PoolStats) -> Values:
    return [(count, {_REASON: why}) for why, count in stats.replacements.why.items()]


def _timing(name: str, description: str) -> Metric:
    return Metric(name, InstrumentKind.HISTOGRAM, "s", description, buckets=BUCKETS)


HISTOGRAMS = (
    _timing("db.client.connection.create_time", "The time it took to create a new connection."),
    _timing("db.client.connection.wait_time", "The time it took to obtain an open connection from the pool."),
    _timing("db.client.connection.use_time", "The time between borrowing a connection and returning it to the pool."),
)

OBSERVED = (
    Metric(
        "db.client.connection.count",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "The number of connections that are currently in state described by the `state` attribute.",
        _states,
    ),
    Metric(
        "db.client.connection.idle.max",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "The maximum number of idle open connections allowed.",
        _one(lambda stats: stats.max_size),
    ),
    Metric(
        "db.client.connection.idle.min",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "The minimum number of idle open connections allowed.",
        _one(lambda stats: stats.min_size),
    ),
    Metric(
        "db.client.connection.max",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "The maximum number of open connections allowed.",
        _one(lambda stats: stats.max_size),
    ),
    Metric(
        "db.client.connection.pending_requests",
        InstrumentKind.UP_DOWN,
        "{request}",
        "The number of current pending requests for an open connection.",
        _one(lambda stats: stats.waiting),
    ),
    Metric(
        "db.client.connection.timeouts",
        InstrumentKind.COUNTER,
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        _one(lambda stats: stats.timeouts),
    ),
    Metric(
        "aiopqr.account.connections",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "Open connections of each account, including the spare.",
        _by_account(lambda account: account.open),
    ),
    Metric(
        "aiopqr.account.logins",
        InstrumentKind.COUNTER,
        "{login}",
        "Logins of each account that the server accepted.",
        _by_account(lambda account: account.opened),
    ),
    Metric(
        "aiopqr.account.refusals",
        InstrumentKind.COUNTER,
        "{login}",
        "Logins of each account that the server refused.",
        _by_account(lambda account: account.refused),
    ),
    Metric(
        "aiopqr.account.refused_time",
        InstrumentKind.GAUGE,
        "s",
        "How long each account has been refused; 0 if it is not.",
        _by_account(lambda account: account.refused_for or 0.0),
    ),
    Metric(
        "aiopqr.account.expires_in",
        InstrumentKind.GAUGE,
        "s",
        "How long each account's password is still valid: negative if it has expired, absent if it does not expire.",
        _by_account(lambda account: account.expires_in),
    ),
    Metric(
        "aiopqr.pair.age",
        InstrumentKind.GAUGE,
        "s",
        "How long ago a fetch last confirmed the credentials.",
        _one(lambda stats: stats.refresh.pair_age or 0.0),
    ),
    Metric(
        "aiopqr.pair.accounts",
        InstrumentKind.GAUGE,
        "{account}",
        "How many accounts the credentials name; if 1, there is no account to fall back to.",
        _one(lambda stats: sum(account.username is not None for account in stats.accounts.values())),
    ),
    Metric(
        "aiopqr.fallbacks",
        InstrumentKind.COUNTER,
        "{fallback}",
        "Connects that used the other account because the first was refused.",
        _one(lambda stats: stats.fallbacks),
    ),
    Metric(
        "aiopqr.outages",
        InstrumentKind.COUNTER,
        "{outage}",
        "How often the server became unavailable.",
        _one(lambda stats: stats.outages),
    ),
    Metric(
        "aiopqr.connect.failures",
        InstrumentKind.COUNTER,
        "{connect}",
        "Connects that failed in the end, after any retries.",
        _one(lambda stats: stats.failed),
    ),
    Metric("aiopqr.refreshes", InstrumentKind.COUNTER, "{refresh}", "Fetches of credentials.", _outcomes),
    Metric(
        "aiopqr.refresh.failures_in_a_row",
        InstrumentKind.GAUGE,
        "{refresh}",
        "Failed fetches since the last one that succeeded.",
        _one(lambda stats: stats.refresh.failures_in_a_row),
    ),
    Metric(
        "aiopqr.replacements",
        InstrumentKind.COUNTER,
        "{connection}",
        "Connections that were replaced.",
        _reasons,
    ),
    Metric(
        "aiopqr.replacement.delayed",
        InstrumentKind.GAUGE,
        "{replacement}",
        "1 while connections stay in use past their lifetime because no replacement can be opened.",
        _one(lambda stats: stats.replacements.delayed_by is not None),
    ),
    Metric(
        "aiopqr.connections.overdue",
        InstrumentKind.UP_DOWN,
        "{connection}",
        "Open connections that are more than a second past the end of their lifetime.",
        _one(lambda stats: stats.replacements.overdue),
    ),
    Metric(
        "aiopqr.connections.lost",
        InstrumentKind.COUNTER,
        "{connection}",
        "Connections that were found dead.",
        _one(lambda stats: stats.lost),
    ),
    Metric(
        "aiopqr.connections.not_writable",
        InstrumentKind.COUNTER,
        "{connection}",
        "Connections closed because their server no longer accepted writes.",
        _one(lambda stats: stats.not_writable),
    ),
)
