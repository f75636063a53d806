"""A pool against a scripted server, in virtual time: whatever happens, in whatever order, no checkout finds anything of
the one before it, no connection and no place is lost, and every permit is returned. With either kind of reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import asyncpg
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.scripted import Backend, Loop, Refused, Server

import aiopqr
from aiopqr._connect import maker_of
from aiopqr._pool.self_test import STATUS, message

MAX_SIZE = 3
RESET_TIMEOUT = 2.0
PAIR = aiopqr.CredentialPair(odd=aiopqr.Credential("app_odd", "1"), even=aiopqr.Credential("app_even", "2"))
CHATTER = (message(b"N", b"SNOTICE\0C00000\0Mhi\0\0"), STATUS, message(b"A", b"\0\0\0\1news\0hi\0"))

which = st.integers(0, 7)
withheld = st.sampled_from([0, 0, 0, 1, 3, 6, 9])
needs = lambda name: precondition(lambda self: getattr(self, name))  # noqa: E731


class Machine(RuleBasedStateMachine):
    """Hypothesis plays the users, the server and the clock."""

    @initialize(
        mode=st.sampled_from(["full", "deferred"]),
        min_size=st.integers(0, 2),
        lifetime=st.sampled_from([0.0, 8.0]),
        is_closed_amid=st.sampled_from([False, False, True]),
    )
    def open(self, mode: str, min_size: int, lifetime: float, is_closed_amid: bool = False) -> None:
        self.is_closed_amid = is_closed_amid
        logging.disable()
        self.loop = Loop()
        self.loop.set_exception_handler(self.unhandled)
        asyncio.set_event_loop(self.loop)
        self.server = Server(self.loop, PAIR.odd)
        self.wrong: list[BaseException] = []
        self.held: dict[Any, Backend] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing: asyncio.Task[None] | None = None
        self.pool = aiopqr.create_pool(
            "postgresql:///app?host=/socket",
            credentials=PAIR,
            min_size=min_size,
            max_size=MAX_SIZE,
            max_lifetime=lifetime,
            max_inactive_connection_lifetime=5.0,
            reset_timeout=RESET_TIMEOUT,
            session_reset=mode,
            loop=self.loop,
        )
        maker_of(self.pool.connector).connect = self.server.connect  # type: ignore[method-assign]
        opening = self.loop.create_task(self.pool._open())
        while not opening.done():
            self.loop.turn(10)
            for gate in self.server.connecting:
                gate.set_result(None)
        opening.result()

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "active transaction" not in context["message"]:  # asyncpg reports those
            self.wrong.append(context.get("exception") or AssertionError(context))

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.finished)
        self.loop.turn(1)
        return task

    def finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.wrong.append(error)

    # The users.

    @rule(timeout=st.sampled_from([0.0, 0.5, 10.0, None]))
    def acquire(self, timeout: float | None) -> None:
        self.start(self._acquire(timeout))

    async def _acquire(self, timeout: float | None) -> None:
        try:
            con: Any = await self.pool.acquire(timeout=timeout)
        except (aiopqr.AcquireTimeout, aiopqr.PoolClosing, Refused):
            return
        assert con._con not in {one._con for one in self.held}, "a connection was handed out twice"
        self.held[con] = backend = self.server.backend_of(con)
        assert backend.is_clean, f"a checkout found {vars(backend)}"

    @needs("held")
    @rule(which=which, query=st.sampled_from(["SET", "SET", "BEGIN", "FAIL", "SELECT", "ROLLBACK"]))
    def query(self, which: int, query: str) -> None:
        self.start(self._query(self.pick(which), query))

    async def _query(self, con: Any, query: str) -> None:
        try:
            await con.execute(query)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            pass

    @needs("held")
    @rule(which=which, timeout=st.sampled_from([None, None, None, 1.0]))
    def release(self, which: int, timeout: float | None) -> None:
        con = self.pick(which)
        del self.held[con]
        self.start(self._release(con, timeout))

    async def _release(self, con: Any, timeout: float | None) -> None:
        try:
            await self.pool.release(con, timeout=timeout)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            pass

    @needs("held")
    @rule(which=which)
    def terminate_connection(self, which: int) -> None:
        with contextlib.suppress(asyncpg.InterfaceError):  # it has ended
            self.pick(which).terminate()

    @needs("held")
    @rule(which=which)
    def close_connection(self, which: int) -> None:
        con = self.pick(which)
        if con._con and not con.is_closed():  # asyncpg frees a place too early if two calls close it at the same time
            self.start(self._close(con))

    async def _close(self, con: Any) -> None:
        try:
            await con.close(timeout=1.0)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
            pass

    @needs("tasks")
    @rule(which=which)
    def cancel(self, which: int) -> None:
        tasks = sorted(self.tasks, key=lambda task: task.get_name())
        tasks[which % len(tasks)].cancel()

    @rule()
    def expire_connections(self) -> None:
        self.start(self.pool.expire_connections())

    def pick(self, which: int) -> Any:
        return list(self.held)[which % len(self.held)]

    # The server.

    @property
    def connecting(self) -> list[asyncio.Future[None]]:
        return self.server.connecting

    @property
    def backends(self) -> list[Backend]:
        return self.server.open

    def backend(self, which: int) -> Backend:
        return self.backends[which % len(self.backends)]

    @needs("connecting")
    @rule(which=which, succeeds=st.sampled_from([True, True, True, False]))
    def connect(self, which: int, succeeds: bool) -> None:
        gate = self.connecting[which % len(self.connecting)]
        gate.set_result(None) if succeeds else gate.set_exception(Refused())

    @needs("backends")
    @rule(which=which, withheld=withheld)
    def answer(self, which: int, withheld: int) -> None:
        self.backend(which).answer(withheld)

    @needs("backends")
    @rule()
    def answer_all(self) -> None:
        for backend in self.backends:
            backend.answer()

    @needs("backends")
    @rule(which=which, withheld=withheld)
    def fail(self, which: int, withheld: int) -> None:
        self.backend(which).fail(withheld)

    @needs("backends")
    @rule(which=which, withheld=withheld)
    def heed_cancel(self, which: int, withheld: int) -> None:
        if (backend := self.backend(which)).cancels:
            backend.heed_cancel(withheld)

    @needs("backends")
    @rule(which=which, withheld=withheld, what=st.sampled_from(CHATTER))
    def chat(self, which: int, withheld: int, what: bytes) -> None:
        self.backend(which).send(what, withheld)

    @needs("backends")
    @rule(which=which, with_a_word=st.booleans(), ends=st.booleans())
    def end(self, which: int, with_a_word: bool, ends: bool) -> None:
        backend = self.backend(which)
        if with_a_word and backend.is_entered:
            backend.say_goodbye()
        if ends or not with_a_word:
            backend.end()

    # The clock.

    @rule(turns=st.sampled_from([1, 2, 3, 5, 30]))
    def turn(self, turns: int) -> None:
        self.loop.turn(turns)

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.1, 2.5, 9.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.pass_time(seconds)

    # What must hold.

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.wrong:
            raise self.wrong.pop(0)
        assert self.server.most_sockets <= MAX_SIZE + 1

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.close_amid() if self.is_closed_amid else self.end_well()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
            logging.disable(logging.NOTSET)

    def close_amid(self) -> None:
        """The pool is closed while everything is in progress, and the server no longer answers."""
        closing = self.loop.create_task(self.pool.close(timeout=1.0))
        self.loop.pass_time(5.0)
        closing.result()
        for _ in range(len(self.held)):
            self.release(0, None)
        self.loop.pass_time(10.0)
        self.nothing_is_left()

    def end_well(self) -> None:
        self.server.heal()
        for _ in range(10):
            for _ in range(len(self.held)):
                self.release(0, None)
            self.loop.pass_time(10.0)  # some back off after a failure, others wait for those
            self.nothing_is_wrong()
        self.loop.run_until_complete(self._all_is_there())
        self.loop.run_until_complete(self.pool.close(timeout=30.0))
        self.loop.turn(30)
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        self.nothing_is_wrong()
        assert not self.tasks, "a task hangs"
        assert not self.server.open, "a connection was lost"
        assert not asyncio.all_tasks(self.loop)

    async def _all_is_there(self) -> None:
        await asyncio.sleep(5.0)
        assert (stats := self.pool.stats()).in_use == stats.resetting == stats.waiting == 0, stats
        for _ in range(MAX_SIZE):
            await self._acquire(10.0)
        assert len(self.held) == MAX_SIZE, "a place was lost"
        with pytest.raises(aiopqr.AcquireTimeout):
            await self.pool.acquire(timeout=0.01)
        for con in self.held:
            await self.pool.release(con)


@pytest.mark.proof
@pytest.mark.timeout(600)
class TestMachine(Machine.TestCase):  # type: ignore[name-defined,misc]
    """Quick unless HYPOTHESIS_PROFILE=proof."""


# What it has found so far, step by step.


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.teardown()


def test_a_connection_that_expires_while_it_is_handed_over_is_idle_again(machine: Machine) -> None:
    machine.open("full", 0, 0.0)
    machine.acquire(0.5)
    machine.expire_connections()
    machine.connect(0, True)
    machine.acquire(0.0)


def test_a_goodbye_is_heard_until_whoever_waits_for_the_connection_comes(machine: Machine) -> None:
    machine.open("full", 0, 0.0)
    machine.acquire(10.0)
    machine.loop.turn(10)
    machine.connect(0, True)
    machine.loop.turn(3)
    (backend,) = machine.backends
    assert backend.is_entered
    machine.end(0, True, False)
    machine.loop.turn(10)
    assert not machine.held


def test_a_goodbye_behind_the_rest_of_a_checks_answer_ends_the_connection(machine: Machine) -> None:
    machine.open("full", 2, 0.0)
    machine.end(0, True, False)
    machine.acquire(0.5)
    machine.pass_time(0.1)
    machine.answer(0, 1)
    machine.end(0, True, False)
    machine.pass_time(0.1)
    assert not machine.held


def test_asyncpg_closes_nothing_in_a_task_that_nobody_waits_for(machine: Machine) -> None:
    machine.open("full", 1, 0.0, True)
    machine.end(0, False, True)
    for _ in range(3):
        machine.expire_connections()
    machine.pass_time(0.6)
    machine.connect(0, True)
    machine.pass_time(0.1)
    machine.acquire(0.0)


@pytest.mark.parametrize("mode", ["full", "deferred"])
def test_a_goodbye_to_somebody_who_runs_nothing_ends_the_connection(mode: str, machine: Machine) -> None:
    machine.open(mode, 1, 0.0)
    machine.acquire(1.0)
    machine.end(0, True, False)
    machine.loop.turn(5)
    machine.release(0, None)
    machine.acquire(1.0)
    assert not machine.held
