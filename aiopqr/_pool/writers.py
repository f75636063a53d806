"""Whether a connection's server still takes writes, where ``target_session_attrs`` asks for one that does.

asyncpg asks when it connects, and never again. But a session can outlive its server's role: behind a pooler that is led
elsewhere, or where an operator makes the server read-only. Two signs show it: a write fails with SQLSTATE 25006, or the
server reports ``in_hot_standby`` or ``default_transaction_read_only`` anew. Neither is a proof, since a user's own READ
ONLY transaction and SET look the same. So a sign only puts the connection in *doubt*: after its release, and before
anybody else gets it, its server is asked. If that takes no writes, every other connection is in doubt, too; none is
judged by its address, which may be a proxy's.
"""

from __future__ import annotations

import math
from typing import Any

from .._connect import QUESTIONS

LOOK_EVERY = 0.25  # seconds between two looks at what the server has reported: each costs almost 1 µs

_REPORTED = {"primary": ("in_hot_standby",), "read-write": ("in_hot_standby", "default_transaction_read_only")}


class WriterWatch:
    """What is known of one connection's server. Times are in seconds, in loop time.

    ``query`` asks whether it takes writes; ``asked_at`` is when the last question that it answered with yes was begun.
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
        """Something that was seen at ``since`` says that the server may take no writes any more."""
        if since > max(self.asked_at, self.doubted_at):
            self.doubted_at = since

    def look(self, now: float) -> bool:
        """Whether the server is in doubt, or has reported lately what puts it in doubt."""
        if now >= self.look_at:
            self.look_at = now + LOOK_EVERY
            before, self._seen = self._seen, self._read()
            if self._seen != before and "on" in self._seen and not self.is_doubted:
                self.doubt(now)
        return self.is_doubted

    def _read(self) -> list[Any]:
        return [getattr(self._settings, name, None) for name in self._names]  # None from a server older than 14


def watch_writer(con: Any, session_attribute: str, now: float) -> WriterWatch | None:
    """What watches a new connection, whose connect began at ``now``. None where its server need not take writes."""
    query = QUESTIONS.get(session_attribute)
    return WriterWatch(query, _REPORTED[session_attribute], con.get_settings(), now) if query else None
