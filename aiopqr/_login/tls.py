"""Shares one TLS context between many logins, since asyncpg makes a new one for each.

Reading a CA bundle takes 20 to 30 ms on the event loop, ten times as long as the rest of a connect. Here asyncpg's own
code reads it in a thread, once, and again when one of the files has changed.
"""

from __future__ import annotations

import asyncio
import configparser
import inspect
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from asyncpg import connect_utils

from .. import _threads
from ..options import service_section
from .parsing import TLS_FILES

# The arguments on which a context depends.
_DECISIVE = ("dsn", "host", "port", "ssl", "direct_tls", "service", "servicefile")
_DEFAULTS = {"sslrootcert": "root.crt", "sslcert": "postgresql.crt", "sslkey": "postgresql.key", "sslcrl": "root.crl"}
_VARIABLES = ("PGSSLMODE", "PGSSLNEGOTIATION", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION")
_PATIENCE = 1.0  # how many seconds to wait for the files if there is an older context to fall back on


@dataclass(frozen=True, slots=True)
class _Made:
    """A context (None if asyncpg should make its own), and the state just before it was made of what it depends on."""

    context: ssl.SSLContext | None
    state: tuple[object, ...]  # of files and environment variables


class TlsContexts:
    """The context for the latest arguments.

    Its files and the environment are checked at most every ``check_every`` seconds.
    """

    def __init__(self, *, check_every: float = 1.0) -> None:
        self.worked: ssl.SSLContext | None = None  # the latest one with which a login has succeeded
        self._check_every = check_every
        self._asked: list[Any] = []
        self._made: _Made | None = None
        self._making: asyncio.Future[_Made] | None = None
        self._made_at = 0.0

    async def shared(self, arguments: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> ssl.SSLContext | None:
        """The context to pass to asyncpg as ``ssl=`` with these arguments; None to leave the arguments unchanged.

        If there is already a context for these arguments, this waits at most a second for the files, and otherwise as
        long as it takes. Cancelling the call does not stop the work, and the next login can use the result.
        """
        given = arguments.get("ssl")
        if given in (False, "disable") or isinstance(given, ssl.SSLContext):
            return None
        asked, now = [loop, *map(arguments.get, _DECISIVE)], loop.time()
        if self._asked != asked:
            self.forget()
            self._asked = asked
        if self._making is None or (self._making.done() and now >= self._made_at + self._check_every):
            self._made_at = now
            self._making = _threads.shared.submit(_current, dict(arguments), self._made)
        making, made = self._making, self._made  # another login may forget both while this one waits
        if not making.done():
            patience = None if made is None else max(self._made_at + _PATIENCE - now, 0.0)
            await asyncio.wait({making}, timeout=patience)
        if making.done():
            made = making.result()
            if making is self._making:
                self._made = made
        assert made is not None
        return made.context

    def forget(self) -> None:
        """Discard the context. Call this after a failed login, since the files may have been replaced."""
        self._asked, self._made, self._making = [], None, None


def _current(arguments: Mapping[str, Any], before: _Made | None) -> _Made:
    """The previous context, or a new one if a file or a variable has changed."""
    state = (*map(os.environ.get, _VARIABLES), *(_look(path) for path in _paths(arguments)))
    return before if before is not None and before.state == state else _Made(_make(arguments), state)


def _look(path: Path) -> object:
    try:
        seen = path.stat()
    except OSError:
        return path
    return path, seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size


def _paths(arguments: Mapping[str, Any]) -> Iterator[Path]:
    """Every file that asyncpg may read for a context."""
    home = Path(os.path.expanduser("~"))
    try:
        query = dict(parse_qsl(urlsplit(arguments.get("dsn") or "").query))
        service = service_section(query, arguments)
    except (ValueError, configparser.Error, OSError):
        query, service = {}, {}
    yield Path(arguments.get("servicefile") or os.environ.get("PGSERVICEFILE") or home / ".pg_service.conf")
    for key, variable in TLS_FILES.items():
        named = query.get(key) or service.get(key) or os.environ.get(variable)
        yield Path(named or home / ".postgresql" / _DEFAULTS[key])
    if arguments.get("ssl") is True:
        yield from (Path(path) for path in ssl.get_default_verify_paths()[:2] if path)


def _make(arguments: Mapping[str, Any]) -> ssl.SSLContext | None:
    """The context that asyncpg would make if TLS is required. None otherwise: `prefer` takes more than a context."""
    try:
        parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]
        _, params = parse(**{name: arguments.get(name) for name in inspect.signature(parse).parameters})
        if params.sslmode >= connect_utils.SSLMode.require and isinstance(params.ssl, ssl.SSLContext):
            return params.ssl
    except Exception:
        pass  # if the arguments are wrong, asyncpg's connect will raise the error again
    return None
