"""When a server counts as down, whose turn it is to try, and how long a silent login is left alone."""

from __future__ import annotations

import math

import pytest

from aiopqr._connect.outage import BACKOFF_MAX, Hosts, Outage, Pace
from aiopqr._login import Address


def latest(_: float, most: float) -> float:
    return most


def test_an_outage_begins_once_and_ends_with_the_first_answer() -> None:
    outage = Outage(uniform=latest)
    assert [outage.failed(now) for now in (10.0, 10.0, 11.0)] == [True, False, False]
    assert outage.answered(15.0) == 5.0
    assert outage.answered(16.0) is None
    assert outage.failed(17.0)


def test_failures_that_come_together_count_once_and_pauses_grow_to_a_second() -> None:
    outage, now = Outage(uniform=latest), 0.0
    outage.failed(now)
    outage.failed(now)
    assert outage.failures == 1
    for _ in range(10):
        now = outage.next_turn(1.0)
        outage.failed(now)
    assert outage.next_turn(1.0) - now == BACKOFF_MAX


def test_the_next_turn_waits_for_the_one_under_way_but_not_for_a_silent_one() -> None:
    outage = Outage(uniform=latest)
    outage.failed(0.0)
    outage.begin_turn(1.0)
    assert outage.next_turn(silence=2.0) == 3.0
    outage.end_turn()
    assert outage.next_turn(silence=2.0) <= 1.0
    outage.answered(1.0)
    assert outage.next_turn(silence=2.0) == -math.inf


@pytest.mark.parametrize(
    ("logins", "patience", "silence"),
    [([], 15.0, 1.0), ([0.01], 5.0, 1.0), ([6.0], 24.0, 9.0), ([30.0], 60.0, 45.0), ([30.0] + [0.01] * 10, 5.0, 1.0)],
)
def test_patience_is_four_times_the_slowest_of_the_last_ten_logins(
    logins: list[float], patience: float, silence: float
) -> None:
    pace = Pace()
    for login in logins:
        pace.record(login)
    assert (pace.patience, pace.silence) == (patience, silence)


def test_a_host_that_was_silent_is_tried_last_for_a_while() -> None:
    one, two, hosts = Address("one", 5432), Address("two", 5432), Hosts()
    hosts.was_silent(one, 0.0)
    assert hosts.in_order((one, two), 1.0) == [two, one]
    assert hosts.in_order((one, two), Hosts.LAST_FOR + 1) == [one, two]
    hosts.was_silent(one, 0.0)
    hosts.answered(one)
    assert hosts.in_order((one, two), 1.0) == [one, two]
