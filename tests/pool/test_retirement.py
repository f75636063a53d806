"""Which connection is retired, and when: the promise of ``max_lifetime`` on a pool that exists only as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given, settings

from aiopqr._pool.connection import Checkout, PooledConnection
from aiopqr._pool.retirement import (
    GRACE,
    SPARE_PATIENCE,
    Close,
    Discard,
    Open,
    Report,
    Situation,
    Sleep,
    Swap,
    decide,
)


def idle(deadline: float, since: float = 0.0) -> PooledConnection:
    return PooledConnection(None, None, 1, 0.0, deadline, bool, idle_since=since)


def busy(deadline: float, acquired_at: float = 0.0) -> PooledConnection:
    return PooledConnection(None, None, 1, 0.0, deadline, bool, is_idle=False, checkout=Checkout(acquired_at, 0, None))


def situation(*connections: PooledConnection, now: float, floor: int = 1, room: int = 1, **more: object) -> Situation:
    return Situation(now=now, connections=connections, floor=floor, room=room, **more)  # type: ignore[arg-type]


def test_before_a_deadline_there_is_nothing_to_do() -> None:
    assert decide(situation(idle(10.0), now=5.0)) == Sleep(10.0)


def test_a_due_connection_gets_a_spare_and_then_gives_way_to_it() -> None:
    due = idle(10.0)
    assert decide(situation(due, now=10.0)) == Open(due)
    assert decide(situation(due, now=10.5, spare=idle(99.0))) == Swap(due)


def test_without_room_for_another_socket_no_spare_is_opened() -> None:
    assert decide(situation(idle(10.0), now=10.5, room=0)) == Sleep(11.0)


def test_an_idle_connection_above_the_floor_that_nobody_used_is_closed() -> None:
    used, unused = idle(9.5, since=8.0), idle(10.0, since=1.0)
    assert decide(situation(used, unused, now=10.0, recent=5.0)) == Close(unused)
    assert decide(situation(used, unused, now=10.0, recent=5.0, floor=2)) == Open(used)


def test_the_spare_is_opened_as_early_as_logins_take_long() -> None:
    together = [idle(100.0) for _ in range(4)]
    assert decide(situation(*together, now=50.0, login_time=2.0)) == Sleep(92.0)
    assert decide(situation(idle(100.0), now=40.0, login_time=900.0)) == Sleep(50.0)  # half of its life


def test_a_busy_connection_that_is_due_keeps_no_idle_one_from_being_replaced() -> None:
    held, due = busy(1.0), idle(10.0)
    held.is_reported = True
    assert decide(situation(held, due, now=10.0, spare=idle(99.0))) == Swap(due)


def test_a_spare_that_nobody_takes_is_closed_and_those_that_were_held_are_not_worth_another() -> None:
    held, spare = busy(10.0, acquired_at=5.0), idle(99.0)
    held.is_reported = True
    spare.born = 11.0
    assert decide(situation(held, now=20.0, spare=spare)) == Sleep(11.0 + SPARE_PATIENCE)
    assert decide(situation(held, now=41.0, spare=spare)) == Discard(is_unused=True)
    assert decide(situation(held, now=41.0, unused_since=41.0)) == Sleep(math.inf)
    released_and_taken = busy(10.0, acquired_at=42.0)
    released_and_taken.is_reported = True
    assert decide(situation(released_and_taken, now=43.0, unused_since=41.0)) == Open(released_and_taken)


def test_a_spoilt_spare_goes_first() -> None:
    assert decide(situation(idle(10.0), now=12.0, spare=idle(99.0), is_spoilt=True)) == Discard(is_unused=False)


def test_an_overdue_connection_is_reported_once() -> None:
    late = idle(10.0)
    assert decide(situation(late, now=10.0 + GRACE, not_before=20.0)) == Report(late)
    late.is_reported = True
    assert decide(situation(late, now=10.0 + GRACE, not_before=20.0)) == Sleep(20.0)


def test_whoever_waits_for_a_silent_check_gets_a_spare() -> None:
    assert isinstance(decide(situation(idle(99.0), now=10.0, is_wanted=True)), Open)
    assert isinstance(decide(situation(idle(99.0), now=10.0, is_wanted=True, room=0)), Sleep)


@dataclass
class Pool:
    """A pool in numbers: connections are opened and closed as ``decide`` says, and used at random."""

    floor: int
    size: int
    lifetime: float
    login_time: float
    recent: float = field(init=False)
    now: float = 0.0
    connections: list[PooledConnection] = field(default_factory=list)
    spare: PooledConnection | None = None
    opening_until: float | None = None
    unused_since: float | None = None
    measured: float = 0.0

    def __post_init__(self) -> None:
        self.recent = min(self.lifetime / 2, SPARE_PATIENCE)
        self.fill(self.floor)

    def new(self) -> PooledConnection:
        return PooledConnection(None, None, 1, self.now, self.now + self.lifetime, bool, idle_since=self.now)

    def fill(self, count: int) -> None:
        while len(self.connections) < min(count, self.size):
            self.connections.append(self.new())

    def use(self, count: int) -> None:
        """From now on, this many are in use."""
        self.fill(count)
        for number, pooled in enumerate(self.connections):
            if number < count and pooled.is_idle:
                pooled.is_idle, pooled.checkout = False, Checkout(self.now, 0, None)
            elif number >= count and not pooled.is_idle:
                pooled.is_idle, pooled.checkout, pooled.idle_since = True, None, self.now
                if self.spare and pooled.is_due(self.now):
                    self.swap(pooled)

    def swap(self, pooled: PooledConnection) -> None:
        assert self.spare
        self.connections[self.connections.index(pooled)], self.spare = self.spare, None

    def run(self, until: float) -> None:
        steps = 0
        while True:
            steps += 1
            assert steps < 1000, "it goes round in circles"
            if self.opening_until is not None and self.now >= self.opening_until:
                self.spare, self.opening_until = self.new(), None
                self.measured, self.unused_since = self.login_time, None
            sockets = len(self.connections) + (self.spare is not None) + (self.opening_until is not None)
            assert sockets <= self.size + 1
            room = self.size + 1 - sockets
            step = Sleep(self.opening_until) if self.opening_until is not None else decide(self.situation(room))
            match step:
                case Sleep(wake):
                    assert wake > self.now, "it sleeps until a time that has passed"
                    self.now = min(wake, until)
                    if wake >= until:
                        return
                case Report(pooled):
                    assert not pooled.is_idle or pooled.idle_since > self.now - self.size * self.login_time - GRACE
                    pooled.is_reported = True
                case Close(pooled):
                    self.connections.remove(pooled)
                    assert len(self.connections) >= self.floor
                case Swap(pooled):
                    self.swap(pooled)
                case Open():
                    assert room >= 1
                    self.opening_until = self.now + self.login_time
                case Discard(is_unused):
                    self.spare = None
                    self.unused_since = self.now if is_unused else self.unused_since

    def situation(self, room: int) -> Situation:
        return Situation(
            now=self.now,
            connections=self.connections,
            floor=self.floor,
            room=room,
            spare=self.spare,
            recent=self.recent,
            login_time=self.measured,
            unused_since=self.unused_since,
        )


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 12),
    share=st.floats(0, 1),
    lifetime=st.floats(2, 2000),
    login_time=st.floats(0.001, 0.05),
    loads=st.lists(st.tuples(st.integers(0, 12), st.floats(0.01, 60)), max_size=40),
)
def test_no_idle_connection_is_more_than_a_second_past_its_deadline(
    size: int, share: float, lifetime: float, login_time: float, loads: list[tuple[int, float]]
) -> None:
    pool = Pool(int(size * share), size, lifetime, login_time)
    for count, duration in loads:
        pool.use(min(count, size))
        end = pool.now + duration
        while pool.now < end:
            pool.run(min(end, pool.now + 0.25))
            for pooled in pool.connections:
                if pooled.is_idle and pool.now - pooled.idle_since > 1.0:  # one that was in use was due in its release
                    assert pool.now <= pooled.deadline + 1.0
