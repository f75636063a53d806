"""An SQLAlchemy engine whose connections take the two accounts of a pair in turn.

SQLAlchemy's own pool keeps the connections; a :class:`~aiopqr.Connector` makes them. A connection that is too old or
was made with a superseded password is replaced when it is next checked out, but never while both accounts are refused:
an open session outlives a changed password, so it serves on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .._connect import Connector
from .._pool import lifetime_option
from .._refresh import Refresher
from ..errors import ConfigurationError, MissingExtra
from ..events import Listener
from ..options import check_connect_arguments
from ..sources import Credentials

try:
    from sqlalchemy import URL, event, exc, make_url
    from sqlalchemy.ext import asyncio as sa
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.util import await_only
except ImportError as error:
    raise MissingExtra("aiopqr.integrations.sqlalchemy", "sqlalchemy") from error

__all__ = [
    "async_engine",
    "create_async_engine",
]

_DEADLINE = "aiopqr_deadline"
_IS_FRESH = "aiopqr_is_fresh"


def create_async_engine(
    url: str | URL,
    *,
    credentials: Credentials | Refresher | None = None,
    connector: Connector | None = None,
    max_lifetime: float = 1800.0,
    max_lifetime_jitter: float | None = None,
    name: str = "aiopqr",
    listeners: Iterable[Listener] = (),
    connect_args: Mapping[str, Any] | None = None,
    **engine_kwargs: Any,
) -> AsyncEngine:
    """An ``AsyncEngine`` of SQLAlchemy's asyncpg dialect. ``url`` names neither user nor password.

    ``credentials`` makes a connector, with ``name`` and ``listeners``, on the first connect; ``await engine.dispose()``
    closes it, and an engine that is used again makes another. A ``connector`` that is given is the caller's to start
    and to close; where the URL names no host, its own arguments count.

    ``max_lifetime`` is in seconds, less up to ``max_lifetime_jitter`` (default: a tenth); 0 turns it off. Everything
    else is SQLAlchemy's. Raises :class:`ConfigurationError` for what cannot work.
    """
    target = _checked(url)
    if (credentials is None) is (connector is None):
        raise ConfigurationError("give either credentials= or connector=")
    for key in ("creator", "async_creator"):
        if key in engine_kwargs:
            raise ConfigurationError(f"{key}= cannot be given: the connector makes the connections")
    check_connect_arguments((), connect_args or {})
    lifetime = lifetime_option(max_lifetime, max_lifetime_jitter)
    listeners = tuple(listeners)
    link = _Link(connector, lambda: Connector(credentials=credentials, name=name, listeners=listeners))  # type: ignore[arg-type]
    # Not by async_creator=, which would lose all arguments of the URL and of connect_args, the dialect's own included.
    arguments = {**(connect_args or {}), "async_creator_fn": link.connect}
    engine = sa.create_async_engine(target, connect_args=arguments, **engine_kwargs)

    @event.listens_for(engine.sync_engine, "connect")
    def born(_: Any, record: Any) -> None:
        record.info[_DEADLINE] = lifetime.deadline(time.monotonic())
        record.info[_IS_FRESH] = True

    @event.listens_for(engine.sync_engine, "checkout")
    def checked_out(dbapi_connection: Any, record: Any, _: Any) -> None:
        # One just opened is kept whatever happened meanwhile: SQLAlchemy gives up after two replacements in a row.
        if not record.info.pop(_IS_FRESH, False) and (
            why := link.why_replace(dbapi_connection.driver_connection, record.info.get(_DEADLINE, math.inf))
        ):
            raise exc.DisconnectionError(f"{name}: a connection is replaced: {why}")

    @event.listens_for(engine.sync_engine, "engine_disposed")
    def disposed(_: Any) -> None:
        try:
            await_only(link.close())
        except exc.MissingGreenlet:  # engine.sync_engine.dispose()
            link.terminate()

    return engine


@asynccontextmanager
async def async_engine(url: str | URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    """:func:`create_async_engine` as a context manager, which disposes of the engine and so ends everything."""
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


class _Link:
    """The engine's way to its connector: a given one, or its own, made when it is needed."""

    def __init__(self, given: Connector | None, make: Callable[[], Connector]) -> None:
        self._connector = given
        self._make = make
        self._owns = given is None
        self._lock = asyncio.Lock()

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        connector = self._connector or await self._start()
        return await connector.connect(*args, **kwargs)

    async def _start(self) -> Connector:
        async with self._lock:
            if self._connector is None:
                connector = self._make()
                try:
                    await connector.start()
                except BaseException:
                    await connector.close()
                    raise
                self._connector = connector
            return self._connector

    def why_replace(self, con: Any, deadline: float) -> str | None:
        """Why a connection should not be used any more, if a better one can be had."""
        connector = self._connector
        if connector is None or connector.is_refused():
            return None
        if connector.is_superseded(con):
            return "its password was superseded"
        return "it is too old" if time.monotonic() >= deadline else None

    async def close(self) -> None:
        async with self._lock:  # not while one is being started
            connector = self._let_go()
        if connector:
            await connector.close()

    def terminate(self) -> None:
        if connector := self._let_go():
            connector.terminate()

    def _let_go(self) -> Connector | None:
        if not self._owns:
            return None
        connector, self._connector = self._connector, None
        self._lock = asyncio.Lock()  # the next use may be on another event loop
        return connector


def _checked(url: str | URL) -> URL:
    try:
        target = make_url(url)
    except exc.ArgumentError:
        target = None
    if target is None or target.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise ConfigurationError("url cannot be used: it must look like postgresql+asyncpg://host:port/database")
    if target.username is not None or target.password is not None or {"user", "password"} & set(target.query):
        raise ConfigurationError("url must name no user and no password: credentials= supply them")
    return target.set(drivername="postgresql+asyncpg")
