"""Notices when a connection's server no longer accepts writes, if ``target_session_attrs`` requires that it does.

asyncpg checks that when it connects, and never again. But a session can outlive its server's role: a pooler may switch
to another server, or an operator may make the server read-only. There are two signs: a write fails with SQLSTATE 25006,
or the server reports a change of ``in_hot_standby`` or ``default_transaction_read_only``. Neither is proof, since a
user's own READ ONLY transaction or SET looks the same. So a sign only puts the connection in *doubt*: after its
release, and before anybody else gets it, its server is asked. If it does not accept writes, all other connections are
in doubt as well, whatever their address, since that may be a proxy's.
"""

from __future__ import annotations

import math
from typing import Any

from .._connect import QUESTIONS

LOOK_EVERY = 0.25  # seconds between two looks at what the server has reported, since each takes almost 1 µs

_REPORTED = {"primary": ("in_hot_standby",), "read-write": ("in_hot_standby", "default_transaction_read_only")}


class WriterWatch:
    """What is known about one connection's server. Times are in seconds, in loop time.

    ``query`` asks whether it accepts writes. ``asked_at`` is when the latest query began that was answered with yes.
    """

    __slots__ = ("_names", "_seen", "_settings", "asked_at", "doubted_at", "look_at", "query")

    def __init__(self, query: str, names: tuple[str, ...], settings: Any, now: float) -> None:
        self.query = query
        self.asked_at = self.look_at = now
        self.doubted_at = -math.inf
        self._names = names
        self._settings = settings  # asyncpg keeps it up to date
        self._seen = self._read()

    @property
    def is_doubted(self) -> bool:
        return self.doubted_at > self.asked_at

    def doubt(self, since: float) -> None:
        """Note that something seen at ``since`` suggests that the server no longer accepts writes."""
        if since > max(self.asked_at, self.doubted_at):
            self.doubted_at = since

    def look(self, now: float) -> bool:
        """Look at what the server has reported, and return whether it is in doubt."""
        if now >= self.look_at:
            self.look_at = now + LOOK_EVERY
            before, self._seen = self._seen, self._read()
            if self._seen != before and "on" in self._seen and not self.is_doubted:
                self.doubt(now)
        return self.is_doubted

    def _read(self) -> list[Any]:
        return [getattr(self._settings, name, None) for name in self._names]  # None before Postgres 14


def watch_writer(con: Any, session_attribute: str, now: float) -> WriterWatch | None:
    """A watch for a new connection whose connect began at ``now``, or None if its server need not accept writes."""
    query = QUESTIONS.get(session_attribute)
    return WriterWatch(query, _REPORTED[session_attribute], con.get_settings(), now) if query else None
