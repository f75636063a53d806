"""The logins of a connector that are in flight, each a task that belongs to the connector.

A connect that has succeeded or was cancelled abandons its other logins, and does not wait for them to end. Logins that
are nice to have (an extra one while another gets no answer, a probe, an abandoned one whose outcome is of interest) are
only made, and only kept, while there is room for another socket.
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
from ..clock import call_in
from ..credentials import Credential
from ..refusals import Verdict
from .outage import EXTRA_SPACING

logger = logging.getLogger("aiopqr")


@dataclass(frozen=True, slots=True)
class Connected:
    """A login succeeded. ``is_standby`` is only meaningful if a standby is preferred."""

    con: Any
    attempt: Attempt
    is_standby: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A login failed. The verdict says what that means."""

    verdict: Verdict
    error: BaseException


Outcome = Connected | Failed


class Kind(enum.Enum):
    """What a login is for. When sockets run out, the kinds with lower values are cancelled first."""

    ABANDONED = 0  # its connect is over, and only the verdict is of interest
    PROBE = 1  # it tests in the background whether a refused account works again
    EXTRA = 2  # it helps a connect whose own login gets no answer
    OWN = 3  # a connect's own login, for which the pool has reserved a place


@dataclass(slots=True, eq=False)
class Login:
    """A login in flight."""

    attempt: Attempt
    address: Address | None  # None if only the driver knows it
    kind: Kind
    begun: float
    on_end: Callable[[], object] = lambda: None  # called when it is about to end, and perhaps again when it has ended
    further: list[Address | None] = field(default_factory=list)  # more addresses of the same host
    is_cancelled: bool = False
    task: asyncio.Task[Outcome] = field(init=False)

    @property
    def has_connected(self) -> bool:
        """Whether it has ended with a connection."""
        task = self.task
        is_over = task.done() and not task.cancelled() and task.exception() is None
        return is_over and isinstance(task.result(), Connected)


class Logins:
    """All logins in flight of one connector.

    ``room`` returns how many sockets there may be in addition to one for each connect. A pool sets it.
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
        """Hand over the outcome of a login that has ended. None if the login was cancelled."""
        self._in_flight.pop(login.task, None)
        return None if login.is_cancelled or login.task.cancelled() else login.task.result()

    def next_extra(self, silence: float) -> float:
        """When the next extra login may begin: at most one is in flight, and at most three begin in a second."""
        return max(self._last_extra + EXTRA_SPACING, *(login.begun + silence for login in self.extras()), -math.inf)

    def extras(self) -> list[Login]:
        """The extra login in flight, if there is one."""
        return [login for login in self._without_place() if login.kind is Kind.EXTRA]

    def make_room(self, kind: Kind) -> bool:
        """Cancel less important logins until there is room for one of ``kind``. Returns False if there is none."""
        needed = 0 if kind is Kind.OWN else 1  # the pool has already counted a connect's own login
        while len(without_place := self._without_place()) + needed > self.room():
            expendable = [login for login in without_place if login.kind.value < kind.value]
            if not expendable:
                return False
            self.give_up(min(expendable, key=lambda login: (login.kind.value, login.begun)))
        return True

    def give_up(self, login: Login) -> None:
        """Cancel a login that is no longer wanted, and close its connection if it has made one already."""
        login.kind, login.is_cancelled = Kind.ABANDONED, True
        if login.task.done():
            _discard(login.task)
        else:
            login.task.cancel()

    def let_finish(self, login: Login, longest: float) -> None:
        """Let an unwanted login run for up to ``longest`` more seconds, because its verdict is of interest."""
        if login.task.done() or any(other.kind is Kind.ABANDONED for other in self._without_place()):
            self.give_up(login)
            return
        login.kind = Kind.ABANDONED
        timer = asyncio.get_running_loop().call_later(longest, self.give_up, login)
        login.task.add_done_callback(lambda _: timer.cancel())
        self.make_room(Kind.OWN)

    def silent(self, since: float) -> set[Credential]:
        """The credentials of logins that began before ``since`` and have not been answered yet."""
        return {login.attempt.credential for login in self._in_flight.values() if login.begun < since}

    def cancel(self) -> None:
        """Cancel all logins, except those of a closed loop, which cannot be cancelled."""
        for login in tuple(self._in_flight.values()):
            call_in(login.task.get_loop(), self.give_up, login)

    async def wait_ended(self) -> None:
        """Wait until the logins that were cancelled have ended."""
        if self._in_flight:
            await asyncio.wait(tuple(self._in_flight))

    def _without_place(self) -> list[Login]:
        """The logins for which the pool has not reserved a place."""
        return [login for login in self._in_flight.values() if login.kind is not Kind.OWN and not login.is_cancelled]

    def _ended(self, task: asyncio.Task[Outcome]) -> None:
        login = self._in_flight.pop(task, None)
        if login is None:  # somebody has taken its outcome
            return
        login.on_end()  # for a task that was cancelled before it first ran, and so could not call it
        if login.kind in (Kind.ABANDONED, Kind.PROBE):
            _discard(task)


def _discard(task: asyncio.Task[Outcome]) -> None:
    """Close the connection, if any, that an unwanted login has made."""
    if task.cancelled():
        return
    if error := task.exception():
        logger.error("%s ended unexpectedly", task.get_name(), exc_info=error)
    elif isinstance(outcome := task.result(), Connected):
        outcome.con.terminate()
