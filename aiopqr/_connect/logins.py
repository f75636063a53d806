"""The logins of a connector that are in flight, each a task that belongs to the connector.

A connect that has succeeded or was cancelled abandons its other logins; nobody waits for them to end. A login that no
connect needs (an extra one while another is silent, a probe, one left running for its verdict) exists only while there
is room for another socket.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from .._login import Address
from .._refresh import Attempt
from ..credentials import Credential
from ..refusals import Verdict
from .outage import EXTRA_SPACING

logger = logging.getLogger("aiopqr")


@dataclass(frozen=True, slots=True)
class Connected:
    """A login succeeded."""

    con: Any
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Failed:
    """A login failed, and what that means."""

    verdict: Verdict
    error: BaseException


Outcome = Connected | Failed


class Kind(enum.Enum):
    """Whom a login is for. The order is that in which they are cut where there is no room for another."""

    LEFT = 0  # nobody any more: only its verdict counts
    PROBE = 1  # nobody: it finds out whether a refused account works again
    EXTRA = 2  # a connect whose own login is silent
    OWN = 3  # a connect, which has a place in the pool


@dataclass(slots=True, eq=False)
class Login:
    """A login in flight."""

    attempt: Attempt
    address: Address | None  # None where the driver finds its way itself
    kind: Kind
    begun: float
    on_end: Callable[[], object] = lambda: None  # called when it is about to end; perhaps once more when it has ended
    further: list[Address | None] = field(default_factory=list)  # more addresses of the same host
    is_cut: bool = False
    task: asyncio.Task[Outcome] = field(init=False)


class Logins:
    """All logins in flight of one connector.

    ``room`` says how many sockets there may be besides those of the connects themselves. A pool sets it.
    """

    def __init__(self, name: str) -> None:
        self.room: Callable[[], float] = lambda: math.inf
        self._name = name
        self._in_flight: dict[asyncio.Task[Outcome], Login] = {}
        self._last_extra = -math.inf

    def begin(self, login: Login, perform: Coroutine[Any, Any, Outcome]) -> Login:
        """Start the login's task."""
        task = login.task = asyncio.create_task(perform, name=f"aiopqr-{self._name}-login")
        self._in_flight[task] = login
        task.add_done_callback(self._ended)
        if login.kind is Kind.EXTRA:
            self._last_extra = login.begun
        return login

    def take(self, login: Login) -> Outcome | None:
        """What came of a login that has ended, for the caller to keep; None if it was cut."""
        self._in_flight.pop(login.task, None)
        return None if login.is_cut or login.task.cancelled() else login.task.result()

    def next_extra(self, silence: float) -> float:
        """When the next extra login may begin: there is at most one, and no more than three in a second."""
        return max(self._last_extra + EXTRA_SPACING, *(login.begun + silence for login in self.extras()), -math.inf)

    def extras(self) -> list[Login]:
        """The extra login in flight, if there is one."""
        return [login for login in self._beside() if login.kind is Kind.EXTRA]

    def make_room(self, kind: Kind) -> bool:
        """Cut what matters less than a login of ``kind`` until there is room for it. False if there is none."""
        needed = 0 if kind is Kind.OWN else 1  # the pool has counted a connect's own already
        while len(beside := self._beside()) + needed > self.room():
            expendable = [login for login in beside if login.kind.value < kind.value]
            if not expendable:
                return False
            self.give_up(min(expendable, key=lambda login: (login.kind.value, login.begun)))
        return True

    def give_up(self, login: Login) -> None:
        """Nobody wants the login any more: cut it, and close what it may have brought already."""
        login.kind, login.is_cut = Kind.LEFT, True
        if login.task.done():
            _discard(login.task)
        else:
            login.task.cancel()

    def leave(self, login: Login, longest: float) -> None:
        """Nobody wants the login any more, but let it go on for its verdict, for up to ``longest`` seconds."""
        if login.task.done() or any(other.kind is Kind.LEFT for other in self._beside()):
            self.give_up(login)
            return
        login.kind = Kind.LEFT
        timer = asyncio.get_running_loop().call_later(longest, self.give_up, login)
        login.task.add_done_callback(lambda _: timer.cancel())
        self.make_room(Kind.OWN)

    def silent(self, since: float) -> set[Credential]:
        """The credentials with which a login is in flight that began before ``since``."""
        return {login.attempt.credential for login in self._in_flight.values() if login.begun < since}

    def cancel(self) -> None:
        """Cut all of them. A closed loop cannot run them any more."""
        for login in tuple(self._in_flight.values()):
            if not login.task.get_loop().is_closed():
                self.give_up(login)

    async def wait_ended(self) -> None:
        """Wait until those that were cut have ended."""
        if self._in_flight:
            await asyncio.wait(tuple(self._in_flight))

    def _beside(self) -> list[Login]:
        """Those that have no place of their own in the pool."""
        return [login for login in self._in_flight.values() if login.kind is not Kind.OWN and not login.is_cut]

    def _ended(self, task: asyncio.Task[Outcome]) -> None:
        login = self._in_flight.pop(task, None)
        if login is None:  # it was taken
            return
        login.on_end()  # one that is cut before it begins is not performed
        if login.kind in (Kind.LEFT, Kind.PROBE):
            _discard(task)


def _discard(task: asyncio.Task[Outcome]) -> None:
    """Close what a login has brought that nobody wants."""
    if task.cancelled():
        return
    if error := task.exception():
        logger.error("%s ended unexpectedly", task.get_name(), exc_info=error)
    elif isinstance(outcome := task.result(), Connected):
        outcome.con.terminate()
