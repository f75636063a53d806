"""A limit on how long a reset takes, with one timer for all releases of a pool.

A timer for each release costs more than the rest of what this library adds to it, most of all because the cancelled
ones pile up in the event loop's heap until they are due.
"""

from __future__ import annotations

import asyncio

from .lifetimes import Session
from .tasks import clock_of


class ResetWatch:
    """Terminates the connection of a reset that takes longer than ``limit`` seconds; None lets it take its time."""

    __slots__ = ("_deadlines", "_limit", "_loop", "_now", "_timer")

    def __init__(self, limit: float | None, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limit
        self._loop = loop
        self._now = clock_of(loop)
        self._deadlines: dict[Session, float] = {}  # in the order of their deadlines, since all have the same limit
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, session: Session) -> None:
        if self._limit is not None:
            deadline = self._deadlines[session] = self._now() + self._limit
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._look)

    def end(self, session: Session) -> None:
        """It was reset, or its connection has ended. The timer stays armed: most often the next release needs it."""
        self._deadlines.pop(session, None)

    def _look(self) -> None:
        self._timer = None
        now = self._now()
        for session, deadline in tuple(self._deadlines.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._look)
                return
            del self._deadlines[session]
            session.is_overdue = True
            session.con.terminate()
