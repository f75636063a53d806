"""A limit on how long a release takes, with one timer for all releases of a pool.

A timer for each release costs more than the rest of what this library adds to it, most of all because the cancelled
ones pile up in the event loop's heap until they are due.
"""

from __future__ import annotations

import asyncio
import math
import weakref

from .lifetimes import Session
from .sessions import Sessions
from .tasks import clock_of


class ReleaseWatch:
    """Terminates the connection of a release that takes longer than ``limit`` seconds; None lets it take its time."""

    def __init__(self, limit: float | None, sessions: Sessions, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = math.inf if limit is None else limit
        self._sessions = weakref.ref(sessions)  # an armed timer must not keep a pool that was dropped
        self._loop = loop
        self._now = clock_of(loop)
        self._is_armed = limit is None

    def begin(self, session: Session) -> None:
        """Watch it until its ``release_by`` is taken back. The timer stays armed: the next release needs it."""
        session.release_by = self._now() + self._limit
        if not self._is_armed:
            self._arm(session.release_by)

    def _arm(self, when: float) -> None:
        self._is_armed = True
        self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._is_armed = False
        now = self._now()
        next_look = math.inf
        for session in tuple(self._sessions() or ()):
            if session.release_by <= now:
                session.is_overdue = True
                session.con.terminate()
            else:
                next_look = min(next_look, session.release_by)
        if next_look < math.inf:
            self._arm(next_look)
