"""An SQLAlchemy engine whose connections alternate between the two accounts of a pair.

SQLAlchemy's own pool keeps the connections, and a :class:`~aiopqr.Connector` makes them. A connection that is too old,
or that was opened with a password that has changed since, is replaced when it is next checked out. While both accounts
are refused, none is replaced, because a session stays valid when its password changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from .._connect import Connector, maker_of
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

# What users of other drivers write, and what to write instead.
_SPELLED_OTHERWISE = {
    "sslmode": "ssl=, with the same values: ?ssl=require",
    "sslrootcert": 'connect_args={"ssl": ssl.create_default_context(cafile=...)}',
    "sslcert": 'connect_args={"ssl": context}, after context.load_cert_chain(...)',
    "sslkey": 'connect_args={"ssl": context}, after context.load_cert_chain(...)',
    "connect_timeout": 'connect_args={"timeout": ...}, in seconds',
    "application_name": 'connect_args={"server_settings": {"application_name": ...}}',
    "options": 'connect_args={"server_settings": {...}}',
    "dbname": "the path of the URL: postgresql+asyncpg://host/database",
}


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
    """Make an ``AsyncEngine`` of SQLAlchemy's asyncpg dialect. ``url`` must not name a user or a password.

    With ``credentials``, the engine makes a connector when it first connects on an event loop, and closes it in ``await
    engine.dispose()``. The connector has the ``name`` and the ``listeners`` that you pass. If you use the engine on
    several loops, one after another or at the same time (``poolclass=NullPool``), or in a forked process, it makes a
    connector for each. If you pass a ``connector`` instead, you start and close it yourself; if the URL names no host,
    the connector's own arguments say where to connect.

    A connection is replaced after ``max_lifetime`` seconds (default: half an hour; 0: never), minus up to
    ``max_lifetime_jitter`` seconds (default: a tenth of it). All other arguments are SQLAlchemy's. Raises
    :class:`ConfigurationError` for arguments that cannot work.
    """
    target = _checked(url)
    if (credentials is None) is (connector is None):
        raise ConfigurationError("give either credentials= or connector=")
    for key in ("creator", "async_creator"):
        if key in engine_kwargs:
            raise ConfigurationError(f"{key}= cannot be given: the connector makes the connections")
    check_connect_arguments((), connect_args or {})
    _check_names("url", target.query)
    if connector is None:  # the connect= of a connector that was passed may accept anything
        _check_names("connect_args", connect_args or {})
    lifetime = lifetime_option(max_lifetime, max_lifetime_jitter)
    listeners = tuple(listeners)
    link = _Link(
        connector,
        lambda: Connector(credentials=credentials, name=name, listeners=listeners),  # type: ignore[arg-type]
        lambda: lifetime.deadline(time.monotonic()),
    )
    # Not async_creator=, which would ignore all arguments of the URL and of connect_args, including the dialect's own.
    arguments = {**(connect_args or {}), "async_creator_fn": link.connect}
    engine = sa.create_async_engine(target, connect_args=arguments, **engine_kwargs)

    @event.listens_for(engine.sync_engine, "checkout")
    def checked_out(dbapi_connection: Any, *_: Any) -> None:
        if why := link.why_replace(dbapi_connection.driver_connection):
            raise exc.DisconnectionError(f"{name}: replacing a connection, because {why}")

    with _statements_stay_fast(engine.sync_engine):

        @event.listens_for(engine.sync_engine, "engine_disposed")
        def disposed(_: Any) -> None:
            try:
                await_only(link.close())
            except exc.MissingGreenlet:  # engine.sync_engine.dispose()
                link.terminate()

    return engine


@contextlib.contextmanager
def _statements_stay_fast(engine: Any) -> Iterator[None]:
    """Keep statements fast: an engine with listeners looks for them at each statement, and ours do not need that."""
    had = "_has_events" in vars(engine)
    yield
    if not had:
        vars(engine).pop("_has_events", None)


@asynccontextmanager
async def async_engine(url: str | URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    """:func:`create_async_engine` as a context manager that disposes of the engine at its end."""
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@dataclass(slots=True)
class _Own:
    """The connector that an engine made for one event loop of one process."""

    pid: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connector: Connector | None = None


@dataclass(slots=True)
class _Birth:
    deadline: float
    is_fresh: bool = True


class _Link:
    """The engine's connector: the one that was passed, or one per event loop, made when it is first needed."""

    def __init__(self, given: Connector | None, make: Callable[[], Connector], deadline: Callable[[], float]) -> None:
        self._given = given
        self._make = make
        self._deadline = deadline
        self._own: dict[asyncio.AbstractEventLoop, _Own] = {}
        self._births: weakref.WeakKeyDictionary[Any, _Birth] = weakref.WeakKeyDictionary()

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        connector = self._given or await self._started()
        con = await connector.connect(*args, **kwargs)
        self._births[con] = _Birth(self._deadline())
        return con

    async def _started(self) -> Connector:
        self._drop_unusable()
        own = self._own.setdefault(asyncio.get_running_loop(), _Own(os.getpid()))
        async with own.lock:
            if own.connector is None:
                connector = self._make()
                try:
                    await connector.start()
                except BaseException:
                    await connector.close()
                    raise
                own.connector = connector
            return own.connector

    def why_replace(self, con: Any) -> str | None:
        """Why a connection should be replaced, or None if it should be kept."""
        birth = self._births.get(con)
        if birth is None:
            return None
        if birth.is_fresh:  # keep it in any case: SQLAlchemy gives up after two replacements in a row
            birth.is_fresh = False
            return None
        connector = self._given
        if connector is None and (own := self._own.get(asyncio.get_running_loop())):
            connector = own.connector
        if connector is None or maker_of(connector).is_refused():
            return None
        if connector.is_superseded(con):
            return "its password has changed"
        return "it is too old" if time.monotonic() >= birth.deadline else None

    async def close(self) -> None:
        own = self._own.pop(asyncio.get_running_loop(), None)
        self.terminate()
        if own is None or own.pid != os.getpid():
            return
        async with own.lock:  # not while it is starting
            connector, own.connector = own.connector, None
        if connector:
            await connector.close()

    def terminate(self) -> None:
        """Like :meth:`close`, but without awaiting anything, and for all loops."""
        self._drop_unusable()
        while self._own:
            loop, own = self._own.popitem()
            if own.connector:
                with contextlib.suppress(RuntimeError):  # the loop has just been closed
                    loop.call_soon_threadsafe(own.connector.terminate)

    def _drop_unusable(self) -> None:
        """Forget the connectors of closed loops, and those of the process from which this one was forked."""
        for loop, own in tuple(self._own.items()):
            if loop.is_closed() or own.pid != os.getpid():
                self._own.pop(loop, None)
                if own.connector:
                    own.connector.terminate()


def _checked(url: str | URL) -> URL:
    try:
        target = make_url(url)
    except exc.ArgumentError:
        target = None
    if target is None or target.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise ConfigurationError("url cannot be used: it must look like postgresql+asyncpg://host:port/database")
    if target.username is not None or target.password is not None or {"user", "password"} & set(target.query):
        raise ConfigurationError("url must not contain a user or a password: credentials= supplies them")
    return target.set(drivername="postgresql+asyncpg")


def _check_names(where: str, given: Mapping[str, Any]) -> None:
    for key in given:
        if advice := _SPELLED_OTHERWISE.get(key):
            raise ConfigurationError(f"{where} has {key}=, which asyncpg does not accept: write {advice}")
