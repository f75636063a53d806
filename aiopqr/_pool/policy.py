"""The options that control how a pool hands connections out and takes them back, and their checks."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from ..errors import ConfigurationError
from ..options import non_negative, optional_timeout, positive
from ._asyncpg import counting_class

Hook = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Policy:
    """The options for acquire and release. Times are in seconds; ``inf`` turns something off."""

    acquire_timeout: float | None
    reset_timeout: float
    idle_limit: float
    floor: int
    check_after: float
    leak_threshold: float
    full_reset: bool
    defers_reset: bool
    may_close_on_release: bool  # asyncpg's max_queries is given
    connection_class: Any
    counts_queries: bool  # whether the connections count what they run, so that "nothing ran" can be known
    resets_as_asyncpg: bool  # whether their reset() is asyncpg's own
    setup: Hook | None
    reset: Hook | None


def make_policy(
    *,
    acquire_timeout: float | None,
    reset_timeout: float | None,
    max_inactive_connection_lifetime: float,
    min_size: int,
    check_after: float,
    leak_detection_threshold: float,
    session_reset: str,
    max_queries: float | None,
    connect: Any,
    connection_class: Any,
    setup: Hook | None,
    reset: Hook | None,
) -> Policy:
    """Check a pool's options. Raises :class:`ConfigurationError`, which names an option that cannot work."""
    if session_reset not in ("full", "deferred", "transaction"):
        raise ConfigurationError(f'session_reset must be "full", "deferred" or "transaction", not {session_reset!r}')
    # A user's own connect= may return anything, so only asyncpg's connections are known to count every query.
    countable = (
        connect is None and isinstance(connection_class, type) and issubclass(connection_class, asyncpg.Connection)
    )
    counting = counting_class(connection_class) if countable else None
    return Policy(
        acquire_timeout=optional_timeout("acquire_timeout", acquire_timeout),
        reset_timeout=math.inf if reset_timeout is None else positive("reset_timeout", reset_timeout),
        idle_limit=non_negative("max_inactive_connection_lifetime", max_inactive_connection_lifetime) or math.inf,
        floor=min_size,
        check_after=non_negative("check_after", check_after) or math.inf,
        leak_threshold=non_negative("leak_detection_threshold", leak_detection_threshold),
        full_reset=session_reset != "transaction",
        defers_reset=session_reset == "deferred",
        may_close_on_release=max_queries is not None,
        connection_class=counting or connection_class,
        counts_queries=counting is not None,
        resets_as_asyncpg=counting is not None and connection_class.reset is asyncpg.Connection.reset,
        setup=setup,
        reset=reset,
    )
