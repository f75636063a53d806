"""One TLS context for many logins, where asyncpg makes one for each.

Reading a bundle of authorities takes 20 to 30 ms, on the event loop, before every connect: ten times all the rest. It
stands apart because it is about files and time, and has nothing to do with passwords.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Mapping
from typing import Any

from asyncpg import connect_utils

# What a context depends on. The files that these lead to may change, hence the age limit.
_DECISIVE = ("dsn", "host", "port", "ssl", "direct_tls", "service", "servicefile")


class TlsContexts:
    """The context of the latest arguments, for up to `max_age` seconds; made by asyncpg's own code, in a thread."""

    def __init__(self, *, max_age: float = 60.0) -> None:
        self._max_age = max_age
        self._latest: tuple[list[Any], float, asyncio.Future[ssl.SSLContext | None]] | None = None

    async def shared(self, arguments: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> ssl.SSLContext | None:
        """What to pass as `ssl=` in place of what these arguments for `asyncpg.connect` ask for; None: nothing."""
        given = arguments.get("ssl")
        if given is False or isinstance(given, ssl.SSLContext):
            return None
        asked, now = [loop, *map(arguments.get, _DECISIVE)], loop.time()
        if self._latest is None or self._latest[0] != asked or self._latest[1] <= now:
            self._latest = asked, now + self._max_age, loop.run_in_executor(None, _make, dict(arguments))
        making = self._latest[2]
        return making.result() if making.done() else await asyncio.shield(making)

    def forget(self) -> None:
        """Make the next one anew, as after a handshake that failed: its files may have been replaced."""
        self._latest = None


def _make(arguments: Mapping[str, Any]) -> ssl.SSLContext | None:
    """The context that asyncpg would make, if it would insist on TLS. `prefer` and `allow` are not a context alone."""
    try:
        parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]
        _, params = parse(**{name: arguments.get(name) for name in inspect.signature(parse).parameters})
        if params.sslmode >= connect_utils.SSLMode.require and isinstance(params.ssl, ssl.SSLContext):
            return params.ssl
    except Exception:
        pass  # asyncpg raises it again, in its own place, if it is the arguments' fault
    return None
