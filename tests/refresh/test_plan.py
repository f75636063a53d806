"""When to fetch: the promises of the refresh plan, one by one, in virtual time."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr._refresh.plan import BACKOFF_MAX, REPEAT_MAX, SPACING, SPREAD_MAX, URGENT_MAX, Need, RefreshPlan

NOW = 1000.0
SHARES = st.floats(0.0, 1.0)


def plan(interval: float = 60.0, share: float = 1.0) -> RefreshPlan:
    """A plan whose jitter is always at ``share`` of its range."""
    return RefreshPlan(interval, NOW, uniform=lambda low, high: low + share * (high - low))


def start(plan: RefreshPlan, now: float) -> int:
    ticket = plan.start(now)
    assert ticket is not None
    return ticket


def fetched(interval: float = 60.0, share: float = 1.0) -> RefreshPlan:
    """A plan that has made its first fetch."""
    p = plan(interval, share)
    assert p.succeeded(start(p, NOW), Need.NONE, NOW)
    return p


def test_the_first_fetch_is_due_at_once_and_there_is_one_at_a_time() -> None:
    p = plan()
    assert start(p, NOW) == 1
    assert p.start(NOW + 1000) is None
    assert p.in_flight


@given(SHARES, st.floats(0.01, 1e6))
def test_the_next_comes_after_the_interval_less_up_to_a_fifth(share: float, interval: float) -> None:
    p = fetched(interval, share)
    assert 0.79 * interval <= p.due - NOW <= interval + 1e-9 * NOW
    assert p.start(p.due - interval / 100) is None
    assert p.start(p.due) == 2


def test_without_an_interval_nothing_is_fetched_that_nobody_asked_for() -> None:
    assert fetched(interval=0).due == math.inf


@pytest.mark.parametrize("interval", [0.0, 60.0])
@pytest.mark.parametrize(("within", "expected"), [(7.0, 7.0), (0.0, SPACING), (90.0, 60.0)])
def test_a_source_that_knows_when_something_new_comes_is_asked_just_then(
    interval: float, within: float, expected: float
) -> None:
    p = plan(interval)
    p.succeeded(start(p, NOW), Need.NONE, NOW, within=within)
    assert p.due - NOW == pytest.approx(expected if interval else max(within, SPACING))


@pytest.mark.parametrize("need", [Need.REFUSED, Need.STARVED, Need.ASKED])
@pytest.mark.parametrize("interval", [0.0, 60.0])
def test_what_asks_gets_a_fetch_that_starts_soon_and_later_than_it_asked(need: Need, interval: float) -> None:
    p = fetched(interval)
    assert p.request(need, NOW + 1) == 2
    assert NOW + 1 <= p.due <= NOW + 1 + SPREAD_MAX
    assert start(p, p.due) == 2


@given(st.lists(st.sampled_from([Need.REFUSED, Need.STARVED, Need.ASKED]), min_size=1, max_size=9), st.booleans())
def test_however_many_ask_during_a_fetch_exactly_one_more_follows(needs: list[Need], ok: bool) -> None:
    p = plan()
    running = start(p, NOW)
    assert {p.request(need, NOW) for need in needs} == {running + 1}
    assert p.succeeded(running, Need.NONE, NOW + 1) if ok else p.failed(running, Need.NONE, NOW + 1)
    assert p.due <= NOW + 1 + SPREAD_MAX
    assert start(p, p.due) == running + 1
    now = p.due if p.due < math.inf else NOW + 5
    assert p.succeeded(running + 1, Need.NONE, now)
    assert p.due >= now + 0.8 * 60


@pytest.mark.parametrize("late", ["succeeded", "failed"])
def test_a_fetch_that_was_given_up_changes_nothing_when_it_answers(late: str) -> None:
    p = plan()
    given_up = start(p, NOW)
    assert p.failed(given_up, Need.NONE, NOW + 10)
    before = p.due, p.failures
    assert not getattr(p, late)(given_up, Need.NONE, NOW + 11)
    assert (p.due, p.failures) == before
    running = start(p, p.due)
    assert not getattr(p, late)(given_up, Need.NONE, NOW + 12)
    assert p.in_flight
    assert p.succeeded(running, Need.NONE, NOW + 13)


@given(SHARES)
def test_failures_back_off_with_jitter_up_to_a_minute_and_a_success_forgets_them(share: float) -> None:
    p, now, delays = plan(share=share), NOW, []
    for failures in range(1, 12):
        assert p.failed(start(p, now), Need.NONE, now)
        assert p.failures == failures
        delays.append(p.due - now)
        now = p.due
    longest = [min(0.5 * 2**n, BACKOFF_MAX) for n in range(11)]
    assert all(0.49 * most <= delay <= 1.001 * most for delay, most in zip(delays, longest, strict=True))
    assert p.succeeded(start(p, now), Need.NONE, now)
    assert p.failures == 0


def test_a_failing_store_is_not_asked_more_often_because_an_account_is_refused() -> None:
    p = plan()
    now = NOW
    for _ in range(8):
        p.failed(start(p, now), Need.REFUSED, now)
        due, now = p.due, p.due
    p.failed(start(p, now), Need.REFUSED, now)
    due = p.due
    p.request(Need.REFUSED, now + 1)
    assert p.due == due
    p.request(Need.ASKED, now + 2)
    assert p.due == now + 2, "but for a human"


@given(SHARES, st.integers(1, 20))
def test_while_connects_wait_a_failing_store_is_asked_at_least_every_two_seconds(share: float, failures: int) -> None:
    p, now = plan(share=share), NOW
    for _ in range(failures):
        p.failed(start(p, now), Need.NONE, now)
        now = p.due
    p.failed(start(p, now), Need.NONE, now)
    p.request(Need.STARVED, now)
    assert p.due <= now + URGENT_MAX
    now = p.due
    p.failed(start(p, now), Need.STARVED, now)
    assert p.due <= now + URGENT_MAX


def test_however_many_connects_wait_the_store_is_not_asked_faster_than_the_spacing() -> None:
    p, now, starts = fetched(), NOW, []
    while now < NOW + 10:
        p.request(Need.STARVED, now)
        if p.start(now):
            starts.append(now)
            p.succeeded(p.started, Need.STARVED, now)
        now += 0.01
    assert all(later - earlier >= SPACING - 1e-6 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize(("need", "slowest"), [(Need.REFUSED, REPEAT_MAX), (Need.STARVED, URGENT_MAX)])
def test_a_fetch_that_brought_nothing_newer_is_repeated_soon_and_then_less_often(need: Need, slowest: float) -> None:
    p, now, delays = plan(interval=0), NOW, []
    for _ in range(12):
        assert p.succeeded(start(p, now), need, now)
        delays.append(p.due - now)
        now = p.due
    assert delays == pytest.approx([min(0.5 * 2**n, slowest) for n in range(12)])
    assert p.succeeded(start(p, now), Need.NONE, now)
    assert p.due == math.inf


@pytest.mark.parametrize("need", [Need.REFUSED, Need.STARVED])
def test_a_source_that_is_polled_often_is_not_polled_less_often_because_something_is_amiss(need: Need) -> None:
    p, now = plan(interval=1.0), NOW
    for number in range(12):
        p.failed(start(p, now), need, now) if number % 2 else p.succeeded(start(p, now), need, now)
        assert p.due - now <= 1.0
        now = p.due


@given(SHARES)
def test_a_fleet_that_is_refused_at_one_moment_is_spread(share: float) -> None:
    p = fetched(share=share)
    p.request(Need.REFUSED, NOW + 1)
    assert p.due == pytest.approx(NOW + 1 + share * SPREAD_MAX)
