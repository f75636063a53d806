"""``create_pool()``: the pool's options, each explained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, Unpack

import asyncpg

from .._connect import CONNECT_TIMEOUT
from .._refresh import Refresher
from ..events import Listener
from ..options import ConnectArguments
from ..sources import Credentials
from .generic import ConnectionT, RecordT
from .pool import AlternatingPool


def create_pool(
    dsn: str | None = None,
    *,
    credentials: Credentials | Refresher,
    min_size: int = 10,
    max_size: int = 10,
    max_lifetime: float = 1800.0,
    max_lifetime_jitter: float | None = None,
    timeout: float | None = CONNECT_TIMEOUT,
    acquire_timeout: float | None = 30.0,
    max_waiting: int | None = None,
    check_after: float = 1.0,
    session_reset: Literal["full", "deferred", "transaction"] = "full",
    reset_timeout: float | None = 10.0,
    leak_detection_threshold: float = 0.0,
    refresh_interval: float | None = None,
    fetch_timeout: float = 10.0,
    keep_renamed: bool = True,
    drain_on_rotation: bool = False,
    scram_cache: bool = True,
    require_auth: str | None = None,
    channel_binding: Literal["disable", "prefer", "require"] | None = None,
    writer_guard: bool = True,
    name: str = "aiopqr",
    listeners: Iterable[Listener] = (),
    max_queries: int | None = None,
    max_inactive_connection_lifetime: float = 300.0,
    connect: Callable[..., Awaitable[Any]] | None = None,
    setup: Callable[[Any], Awaitable[None]] | None = None,
    init: Callable[[Any], Awaitable[None]] | None = None,
    reset: Callable[[Any], Awaitable[None]] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    connection_class: type[ConnectionT] = asyncpg.Connection,  # type: ignore[assignment]
    record_class: type[RecordT] = asyncpg.Record,  # type: ignore[assignment]
    **connect_arguments: Unpack[ConnectArguments],
) -> AlternatingPool[RecordT, ConnectionT]:
    """Make a pool whose connections use the two accounts of ``credentials`` in turn.

    Open it with ``async with``, or await it and call ``close()`` yourself. It is an ``asyncpg.Pool``: what is not
    explained here is as in :func:`asyncpg.create_pool`, except that the DSN and the arguments must not name a user or
    a password. All times are in seconds, as floats.

    - ``dsn``: Where the database is: ``postgresql://host:port/database``, and libpq's options. None: the arguments,
      the environment or the secret say where.
    - ``credentials``: A source, an async callable, a :class:`CredentialPair`, or a :class:`Refresher` that is shared.
    - ``min_size``, ``max_size``: How many connections are kept open, and how many there may be. While one is being
      replaced, there may be one more.
    - ``max_lifetime``: The age at which a connection is replaced; the new one is opened first. 0: never.
    - ``max_lifetime_jitter``: How much earlier that may happen, at random. None: a tenth of ``max_lifetime``.
    - ``timeout``: For one connect, including the fallback, and the wait for newer credentials or a server that is down.
    - ``acquire_timeout``: For an ``acquire()`` without its own timeout. None: wait as long as it takes.
    - ``max_waiting``: How many tasks may wait while all ``max_size`` connections are in use, or being opened for
      others; the next gets :class:`TooManyWaiting`. None: no limit.
    - ``check_after``: If a connection was idle for longer, check it before it is handed out. 0: never.
    - ``session_reset``: What a release resets. ``"full"``: whatever asyncpg resets. ``"transaction"``: only an open
      transaction. ``"deferred"``: like ``"full"``, but ``release()`` only waits for the rollback of an open
      transaction. Nobody gets the connection before the reset is confirmed, but until then, advisory locks, LISTEN, SET
      and cursors remain in effect for a moment.
    - ``reset_timeout``: For the reset of a ``release()``. None: wait as long as it takes.
    - ``leak_detection_threshold``: Report a connection held for longer, with a stack trace of the acquire. 0: never.
    - ``refresh_interval``: Between two fetches. None: the source's own; 0: only when an account is refused.
    - ``fetch_timeout``: For one fetch of the credentials.
    - ``keep_renamed``: If a source with a single account starts to return a different one, keep the previous one as a
      last resort: see :class:`Refresher`. False: replace its connections immediately.
    - ``drain_on_rotation``: When a password changes, replace its connections at once, not at the end of their lifetime.
    - ``scram_cache``: Derive the SCRAM keys once for each password, instead of once for each connect.
    - ``require_auth``, ``channel_binding``: What the server may ask for, as in libpq; also in the DSN. None: never a
      password as plain text without TLS, and SCRAM bound to the server's certificate if the server supports it. A
      server that asks for anything else gets nothing.
    - ``writer_guard``: With ``target_session_attrs`` ``"read-write"`` or ``"primary"``, close a connection whose server
      no longer accepts writes, before anybody else gets it.
    - ``name``, ``listeners``: The pool's name in logs, tasks, errors and metrics; functions that are called with each
      :class:`~aiopqr.events.Event`.
    - ``max_queries``: Close a connection after this many queries, *before* opening another. None: never.
    - ``max_inactive_connection_lifetime``: Close connections beyond ``min_size`` that were idle for longer. 0: never.
    - ``connect``: Called instead of ``asyncpg.connect``, with ``user=`` and a callable ``password=``.
    - ``setup``, ``init``, ``reset``: Called with a connection: on acquire, once when it is opened, and on release.
    - ``loop``, ``connection_class``, ``record_class``: As in asyncpg.

    Opening the pool raises the source's error if the fetch fails; :class:`CredentialsRefused` if every account is
    refused for ``timeout`` seconds; :class:`ConnectTimeout` if the server stays down that long; and other errors of the
    server at once, including :class:`UntrustedServer`. An option that cannot work raises :class:`ConfigurationError`.
    """
    return AlternatingPool(
        dsn,
        credentials=credentials,
        min_size=min_size,
        max_size=max_size,
        max_lifetime=max_lifetime,
        max_lifetime_jitter=max_lifetime_jitter,
        timeout=timeout,
        acquire_timeout=acquire_timeout,
        max_waiting=max_waiting,
        check_after=check_after,
        session_reset=session_reset,
        reset_timeout=reset_timeout,
        leak_detection_threshold=leak_detection_threshold,
        refresh_interval=refresh_interval,
        fetch_timeout=fetch_timeout,
        keep_renamed=keep_renamed,
        drain_on_rotation=drain_on_rotation,
        scram_cache=scram_cache,
        require_auth=require_auth,
        channel_binding=channel_binding,
        writer_guard=writer_guard,
        name=name,
        listeners=listeners,
        max_queries=max_queries,
        max_inactive_connection_lifetime=max_inactive_connection_lifetime,
        connect=connect,
        setup=setup,
        init=init,
        reset=reset,
        loop=loop,
        connection_class=connection_class,
        record_class=record_class,
        **connect_arguments,
    )
