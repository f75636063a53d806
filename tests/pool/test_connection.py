"""How old a connection may get."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from aiopqr._pool.connection import Lifetime, PooledConnection


def pooled(deadline: float, **more: Any) -> PooledConnection:
    return PooledConnection(con=object(), attempt=None, epoch=1, born=0.0, deadline=deadline, is_busy=bool, **more)


@given(st.floats(0.001, 1e6), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1e6))
def test_a_deadline_is_at_most_the_jitter_early_and_never_late(
    longest: float, share_of_jitter: float, drawn: float, born: float
) -> None:
    jitter = longest * share_of_jitter
    lifetime = Lifetime(longest, jitter, lambda low, high: low + drawn * (high - low))
    slack = 1e-9 * (born + longest)
    assert born + longest - jitter - slack <= lifetime.deadline(born) <= born + longest + slack


def test_a_deadline_is_drawn_once_for_each_connection() -> None:
    draws = iter([0.0, 10.0, 5.0])
    lifetime = Lifetime(100.0, 10.0, lambda low, high: next(draws))
    assert [lifetime.deadline(0.0) for _ in range(3)] == [100.0, 90.0, 95.0]


def test_without_a_lifetime_there_is_no_deadline() -> None:
    assert Lifetime(0.0, 0.0).deadline(5.0) == math.inf


def test_a_connection_is_due_at_its_deadline() -> None:
    assert not pooled(10.0).is_due(9.999)
    assert pooled(10.0).is_due(10.0)


def test_expiring_makes_due_at_once_and_says_why_but_delays_nothing() -> None:
    young, old = pooled(100.0), pooled(5.0)
    young.expire("drain", 10.0)
    old.expire("drain", 10.0)
    assert (young.deadline, young.why) == (10.0, "drain")
    assert (old.deadline, old.why) == (5.0, "lifetime")


def test_a_connection_in_use_or_just_released_was_used() -> None:
    assert pooled(1.0, is_idle=False).was_used(5.0)
    assert pooled(1.0, idle_since=6.0).was_used(5.0)
    assert not pooled(1.0, idle_since=5.0).was_used(5.0)
