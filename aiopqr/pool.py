"""``AlternatingPool``: an ``asyncpg.Pool`` whose connections take two accounts in turn and are replaced as they work.

asyncpg's pool keeps the connections. Around it stand the connector, which makes them; the turnstile, by which acquirers
come first served; and the replacement, which retires what is due. What asyncpg would do at an acquirer's expense
(a dead connection handed out, a working one dropped for one that may not come) happens elsewhere or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
import warnings
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, Self

import asyncpg
from asyncpg.pool import PoolAcquireContext

from ._asyncpg import counting_copies, queries_run, raw_connection
from .connector import CONNECT_TIMEOUT, Connector
from .credentials import CredentialPair
from .errors import AcquireTimeout, ConfigurationError, PoolClosing, describe
from .events import ConnectionLost, Emitter, Event, LeakSuspected, Listener, Refreshed
from .lifetimes import Session
from .options import check_connect_arguments, lifetime, non_negative, optional_timeout, whole_number_or_none
from .refresher import Refresher
from .refusals import is_connection_lost
from .replacement import CLOSE_TIMEOUT, Replacement
from .sources import Credentials
from .stats import Histogram, PoolStats
from .turnstile import Turnstile

CHECK_TIMEOUT = 5.0
logger = logging.getLogger("aiopqr")

_UNSET: Any = object()


class AlternatingPool(asyncpg.Pool):
    """A pool of asyncpg connections that alternate between the two accounts of a credential pair.

    It takes what :func:`asyncpg.create_pool` takes, but for ``user`` and ``password``, and behaves as it documents.
    Times are in seconds.

    ``credentials``
        A source, an async callable, a fixed :class:`CredentialPair`, or a :class:`Refresher` that pools share.
    ``max_lifetime``, ``max_lifetime_jitter``
        How old a connection gets before it is replaced, and by how much earlier at most (default: a tenth). 0 turns it
        off. The replacement is opened first, so the pool opens at most ``max_size + 1`` connections.
    ``acquire_timeout``
        For ``acquire()`` alone, where the call gives none; None waits for ever.
    ``reset_timeout``
        For ``release()``, where neither it nor the ``acquire()`` was given a timeout.
    ``max_waiting``
        How many may wait in ``acquire()``; the next one gets :class:`TooManyWaiting` at once.
    ``check_after``
        A connection that was idle for longer is checked before it is handed out; 0 turns it off.
    ``session_reset``
        ``"full"`` resets the session on release as asyncpg does; ``"transaction"`` only rolls back an open transaction,
        so that SET, LISTEN, advisory locks and temporary tables outlive the release. Nothing is reset if nothing ran.
    ``leak_detection_threshold``
        Warn, with the stack of the acquire, when a connection is held for longer; 0 turns it off.
    ``drain_on_rotation``
        Replace the connections of superseded credentials at once, rather than at the end of their lifetime.
    ``refresh_interval``, ``fetch_timeout``
        Between fetches that nobody asked for (default: the source's own), and for one fetch.
    ``scram_cache``
        Prove the password with keys that are derived once, not for each connect.
    ``max_queries``
        Off unless given. It is asyncpg's, and closes a connection before there is another.
    ``name``, ``listeners``
        For logs, tasks, errors and metrics; and functions that get each :class:`~aiopqr.events.Event`.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        credentials: Credentials | Refresher,
        max_lifetime: float = 1800.0,
        max_lifetime_jitter: float | None = None,
        acquire_timeout: float | None = 30.0,
        reset_timeout: float | None = 10.0,
        max_waiting: int | None = None,
        check_after: float = 1.0,
        session_reset: str = "full",
        leak_detection_threshold: float = 0.0,
        drain_on_rotation: bool = False,
        refresh_interval: float | None = None,
        fetch_timeout: float = 10.0,
        scram_cache: bool = True,
        name: str = "aiopqr",
        listeners: Iterable[Listener] = (),
        min_size: int = 10,
        max_size: int = 10,
        max_queries: float | None = None,
        max_inactive_connection_lifetime: float = 300.0,
        connect: Callable[..., Awaitable[Any]] | None = None,
        setup: Callable[[Any], Awaitable[None]] | None = None,
        init: Callable[[Any], Awaitable[None]] | None = None,
        reset: Callable[[Any], Awaitable[None]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: type[Any] = asyncpg.Connection,
        record_class: type[Any] = asyncpg.Record,
        **kwargs: Any,
    ) -> None:
        args: tuple[Any, ...] = () if dsn is None else (dsn,)
        check_connect_arguments(args, kwargs)
        self._lifetime = lifetime(max_lifetime, max_lifetime_jitter)
        self._acquire_timeout = optional_timeout("acquire_timeout", acquire_timeout)
        self._reset_timeout = optional_timeout("reset_timeout", reset_timeout)
        self._check_after = non_negative("check_after", check_after) or math.inf
        self._leak_threshold = non_negative("leak_detection_threshold", leak_detection_threshold)
        if session_reset not in ("full", "transaction"):
            raise ConfigurationError('session_reset must be "full" or "transaction"')
        self._full_reset = session_reset == "full"
        self._drain_on_rotation = drain_on_rotation
        self._user_setup, self._user_init, self._user_reset = setup, init, reset
        # A user's own connect= may make what it likes, so only asyncpg's connections are known to count every query.
        self._counts_queries = connect is None and issubclass(connection_class, asyncpg.Connection)
        self._may_close_on_release = max_queries is not None
        self._event_loop = loop or asyncio.get_event_loop()
        self._connect_options = args, kwargs
        self._connect_constants: dict[str, Any] = {
            "loop": self._event_loop,
            "connection_class": counting_copies(connection_class) if self._counts_queries else connection_class,
            "record_class": record_class,
        }
        super().__init__(
            *args,
            min_size=min_size,
            max_size=max_size,
            max_queries=math.inf if max_queries is None else max_queries,  # type: ignore[arg-type]
            max_inactive_connection_lifetime=max_inactive_connection_lifetime,
            connect=self._connect_for_holder,
            reset=self._reset_for_release,
            **self._connect_constants,
            **kwargs,
        )
        self.name = name
        # It gets the arguments with each call, since set_connect_args() may change them.
        self._connector = Connector(
            credentials=credentials,
            connect=connect,
            refresh_interval=refresh_interval,
            fetch_timeout=fetch_timeout,
            scram_cache=scram_cache,
            name=name,
            listeners=listeners,
        )
        self.events: Emitter = self._connector.events
        self.events.add(self._heard)
        self.sessions: dict[Any, Session] = {}
        self._turnstile = Turnstile(max_size, whole_number_or_none("max_waiting", max_waiting), self._event_loop)
        self._replacement = Replacement(self, self._lifetime)
        self._acquiring: dict[asyncio.Task[Any] | None, float | None] = {}
        self._opening: set[asyncio.Task[Any]] = set()
        self._restoring = 0  # holders that asyncpg has taken out of its queue to connect them
        self._suspect_since = -math.inf  # what was idle then is checked before it is handed out
        self._departed = asyncio.Event()
        self._epoch = 0
        self._state = "new"
        self._acquired = self._timeouts = self._lost = 0
        self.wait_time = Histogram()
        self.use_time = Histogram()

    def __repr__(self) -> str:
        return f"<AlternatingPool {self.name!r} {self._state}, {len(self.sessions)} of {self.get_max_size()} open>"

    # Opening and closing.

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def _open(self) -> Self:
        if self._state == "opening":
            raise asyncpg.InterfaceError("pool is being initialized in another task")
        if self._state != "new":
            await super().__aenter__()  # says what asyncpg says of it
            return self
        self._state = "opening"
        try:
            await self._connector.start()
            await super().__aenter__()
        except BaseException:
            self._state = "closed"
            await self._end()
            raise
        self._state = "open"
        self._replacement.start(self.name)
        return self

    async def close(self, *, timeout: float | None = None) -> None:
        """Refuse those who wait for a connection, wait until all connections are released, and close everything.

        After ``timeout`` seconds, connections still in use are terminated; None waits for them. So does cancelling it.
        """
        if self._state != "open":
            await super().close()
            return
        self._state = "closing"
        self._turn_away()
        try:
            await self._replacement.close()
            async with asyncio.timeout(timeout) as limit:
                await super().close()
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning(
                "%s: connections were still in use %g s after close(), and were terminated", self.name, timeout
            )
        except BaseException:
            self.terminate()
            raise
        finally:
            self._state = "closed"
            await self._end()

    def terminate(self) -> None:
        """Terminate all connections, and cancel the background work, without waiting for it."""
        if self._state in ("open", "closing"):
            self._state = "closed"
            self._turn_away()
            self._replacement.terminate()
            self._connector.terminate()
        super().terminate()

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "open":
            warnings.warn(f"unclosed pool {self!r}", ResourceWarning, source=self, stacklevel=2)
            if not self._event_loop.is_closed():
                self._replacement.terminate()
                self._connector.terminate()

    def _turn_away(self) -> None:
        self._turnstile.close(self._closing_error)
        for opening in self._opening:
            opening.cancel()

    def _closing_error(self) -> PoolClosing:
        return PoolClosing(f"{self.name}: the pool is closing or closed")

    async def _end(self) -> None:
        for opening in self._opening:
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        await self._replacement.close()
        await self._connector.close()

    # What users of asyncpg's pool know, with credentials in mind.

    async def expire_connections(self) -> None:
        """Replace every connection on its next acquire or release, as asyncpg does: first close, then connect.

        :meth:`drain` opens the replacement first.
        """
        self._epoch += 1
        self._replacement.wake()
        await super().expire_connections()

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Connect differently from now on. Takes everything but ``user`` and ``password``."""
        check_connect_arguments((dsn,), connect_kwargs)
        self._epoch += 1
        self._replacement.wake()
        self._connect_options = (dsn,), connect_kwargs
        super().set_connect_args(dsn, **connect_kwargs)

    async def refresh(self) -> None:
        """Fetch credentials now. Returns after a fetch that started after this call; raises what it raised."""
        await self._connector.refresh()

    async def drain(self) -> None:
        """Replace every connection of superseded credentials, one after the other, and return when the last is gone.

        A connection in use is replaced on its release. Cancelling it stops the waiting, not the replacement.
        """
        self._epoch += 1
        superseded = self._expire_superseded()
        while any(session.con in self.sessions for session in superseded):
            await self._departed.wait()

    @property
    def connector(self) -> Connector:
        """What makes the pool's connections. Its own ``connect()`` knows nothing of the pool's arguments."""
        return self._connector

    @property
    def pair(self) -> CredentialPair:
        """The credentials in use."""
        return self._connector.pair

    def stats(self) -> PoolStats:
        """A frozen snapshot. No secret is in it."""
        alive = [session for session in self.sessions.values() if not session.con.is_closed()]
        idle = sum(session.is_idle for session in alive)
        return PoolStats(
            **self._connector.stats_fields(),
            min_size=self.get_min_size(),
            max_size=self.get_max_size(),
            size=len(alive),
            idle=idle,
            in_use=len(alive) - idle,
            waiting=self._turnstile.waiting,
            spare=self._replacement.spares,
            acquired=self._acquired,
            timeouts=self._timeouts,
            lost=self._lost,
            replacements=self._replacement.stats(),
            wait_time=self.wait_time.snapshot(),
            use_time=self.use_time.snapshot(),
        )

    # Acquire and release: the hot path.

    def acquire(self, *, timeout: float | None = _UNSET) -> Any:
        """A connection, as a context manager or awaited.

        ``timeout`` is in seconds; without it ``acquire_timeout`` counts, and None waits for ever. Raises
        :class:`AcquireTimeout`, :class:`TooManyWaiting`, :class:`PoolClosing`, and what a connect may raise.
        """
        return _Acquire(self, timeout)

    async def _check_out(self, timeout: float | None) -> Any:
        started = self._event_loop.time()
        limit = self._acquire_timeout if timeout is _UNSET else timeout
        deadline = None if limit is None else started + limit
        turnstile = self._turnstile
        try:
            if not turnstile.try_enter():
                await turnstile.enter(deadline)
            try:
                connection, session = await self._take(deadline)
            except BaseException:
                turnstile.leave()
                raise
        except TimeoutError as exc:
            if deadline is None or self._event_loop.time() < deadline:
                raise
            self._timeouts += 1
            raise self._too_late(started) from (self._connector.last_failure or exc.__cause__)
        now = self._event_loop.time()
        session.acquired_at = now
        session.queries = queries_run(session.con)
        session.release_timeout = self._reset_timeout if timeout is _UNSET else timeout
        session.holds_permit = True
        if self._leak_threshold:
            stack = "".join(traceback.format_list(traceback.extract_stack(limit=12)[:-2]))
            session.leak_timer = self._event_loop.call_later(self._leak_threshold, self._suspect_leak, session, stack)
        self._acquired += 1
        self.wait_time.record(now - started)
        return connection

    async def _take(self, deadline: float | None) -> tuple[Any, Session]:
        """A connection that works, from asyncpg's pool. A permit is held, so there is one, or room for one."""
        task = asyncio.current_task()
        outer = self._acquiring.get(task, _UNSET)
        self._acquiring[task] = deadline
        try:
            while True:
                if self._restoring:  # all that is free may be out of the queue for a moment
                    async with asyncio.timeout_at(deadline):
                        connection = await super().acquire()
                else:
                    connection = await super().acquire()
                session = self.sessions[raw_connection(connection)]
                session.is_idle = False
                idle_since = session.idle_since
                if self._event_loop.time() - idle_since <= self._check_after and idle_since > self._suspect_since:
                    break
                if await self._is_alive(session, deadline):
                    break
        finally:
            if outer is _UNSET:
                del self._acquiring[task]
            else:
                self._acquiring[task] = outer
        if self._user_setup is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._user_setup(connection)
            except BaseException:
                session.con.terminate()
                raise
        return connection, session

    async def _is_alive(self, session: Session, deadline: float | None) -> bool:
        """Check a connection; a dead one is dropped, and whatever was idle beside it is suspect."""
        now = self._event_loop.time()
        con = session.con
        try:
            async with asyncio.timeout_at(
                now + CHECK_TIMEOUT if deadline is None else min(now + CHECK_TIMEOUT, deadline)
            ):
                await con.execute("")
        except Exception as exc:
            con.terminate()
            self._suspect_since = self._event_loop.time()
            self._tell_lost("idle", exc)
            return False
        except BaseException:
            con.terminate()
            raise
        return True

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back. Its session is reset first, unless nothing ran.

        A connection that was lost meanwhile raises nothing: the queries that succeeded did so. Raises ``TimeoutError``
        and the server's errors where the reset fails; the connection is then dropped.
        """
        con = raw_connection(connection)
        session = self.sessions.get(con)
        if session is None or not session.holds_permit:
            await super().release(connection, timeout=timeout)
            return
        if session.is_due(self._event_loop.time()) and self._replacement.is_ready and self._user_reset is None:
            self._replacement.retire_released(session, connection)
            return
        if timeout is None:
            timeout = session.release_timeout
        if not self._needs_server(session):
            timeout = None  # nothing to wait for, so no timer
        try:
            await super().release(connection, timeout=timeout)
        except Exception as exc:
            if not is_connection_lost(exc):
                raise
            con.terminate()
            self._tell_lost("release", exc)

    def _needs_server(self, session: Session) -> bool:
        """Whether a release may have to wait for the server."""
        con = session.con
        return (
            self._user_reset is not None
            or session.epoch != self._epoch
            or self._may_close_on_release
            or con.is_in_transaction()
            or self._needs_reset(session)
        )

    def _needs_reset(self, session: Session) -> bool:
        return self._full_reset and not (self._counts_queries and queries_run(session.con) == session.queries)

    # What asyncpg's pool calls.

    async def _reset_for_release(self, con: Any) -> None:
        """After asyncpg has rolled back what was open. If this closes the connection, that must be its last await:
        closing puts the holder back into the queue, and asyncpg would then release the next task's checkout."""
        session = self.sessions[con]
        if self._user_reset is not None:
            await self._user_reset(con)
            if session.is_due(self._event_loop.time()) and self._replacement.is_ready and not con.is_closed():
                self._replacement.claim(session)
                await con.close(timeout=CLOSE_TIMEOUT)
                return
        elif self._needs_reset(session):
            await con.reset()
        if not con.is_closed():
            session.is_idle = True
            session.idle_since = self._event_loop.time()
            if session.deadline <= session.idle_since:
                self._replacement.wake()
            self._give_back(session)

    async def _connect_for_holder(self, *args: Any, **kwargs: Any) -> Any:
        """A connection for one of asyncpg's holders: the spare, or a new one."""
        task = asyncio.current_task()
        deadline = self._acquiring.get(task, _UNSET)
        if deadline is _UNSET:
            deadline = None
            self._restoring += 1
        try:
            spare = self._replacement.take_spare()
            if spare and (
                self._event_loop.time() - spare.born <= self._check_after or await self._is_alive(spare, deadline)
            ):
                return self._adopt(spare)
            async with asyncio.timeout_at(deadline):
                opened = await self._open_owned(args, kwargs)
            return self._adopt(opened) if isinstance(opened, Session) else opened
        finally:
            if task not in self._acquiring:
                self._restoring -= 1

    async def _open_owned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Open in a task of the pool's own, which close() can end."""
        opening = asyncio.create_task(self._open_with(args, kwargs), name=f"aiopqr-{self.name}-connect")
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().con.terminate()
            task = asyncio.current_task()
            if self._state in ("closing", "closed") and not (task and task.cancelling()):
                raise self._closing_error() from None
            raise

    async def open_session(self, timeout: float) -> Session:
        """A spare: complete, and not yet in the pool."""
        args, kwargs = self._connect_options
        shorter = min(timeout, kwargs.get("timeout") or CONNECT_TIMEOUT)
        opened = await self._open_with(args, {**kwargs, **self._connect_constants, "timeout": shorter})
        assert isinstance(opened, Session)
        return opened

    async def _open_with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        epoch = self._epoch
        con = await self._connector.connect(*args, **kwargs)
        if not isinstance(con, asyncpg.Connection):
            return con  # a user's connect= made it, and asyncpg says what is wrong with it
        if self._user_init is not None:
            try:
                await self._user_init(con)
            except BaseException:
                con.terminate()
                raise
        now = self._event_loop.time()
        attempt = self._connector.attempt_of(con)
        session = Session(con, attempt, epoch, born=now, deadline=self._lifetime.deadline(now), idle_since=now)
        con.add_termination_listener(partial(_session_ended, weakref.ref(self), session))
        return session

    def _adopt(self, session: Session) -> Any:
        self.sessions[session.con] = session
        if self._drain_on_rotation and self._connector.is_superseded(session.con):
            session.expire("superseded", self._event_loop.time())
        self._replacement.born(session)
        return session.con

    # What comes of a session.

    def is_stale(self, spare: Session) -> bool:
        """Whether a spare was made for other credentials, or with other arguments."""
        return spare.epoch != self._epoch or self._connector.is_superseded(spare.con)

    def ended(self, session: Session) -> None:
        """A connection is closed, whoever closed it."""
        self.sessions.pop(session.con, None)
        self._give_back(session)
        self._replacement.wake()
        self._departed.set()
        self._departed = asyncio.Event()

    def _give_back(self, session: Session) -> None:
        """The permit: once for each checkout, by its release or by the connection's end."""
        if session.holds_permit:
            session.holds_permit = False
            if session.leak_timer is not None:
                session.leak_timer.cancel()
                session.leak_timer = None
            self.use_time.record(self._event_loop.time() - session.acquired_at)
            self._turnstile.leave()

    def _heard(self, event: Event) -> None:
        if isinstance(event, Refreshed) and self._drain_on_rotation:
            self._expire_superseded()

    def _expire_superseded(self) -> list[Session]:
        now = self._event_loop.time()
        superseded = [s for s in self.sessions.values() if self._connector.is_superseded(s.con)]
        for session in superseded:
            session.expire("superseded", now)
        self._replacement.wake()
        return superseded

    def _suspect_leak(self, session: Session, stack: str) -> None:
        held = self._event_loop.time() - session.acquired_at
        self.events.emit(LeakSuspected(name=self.name, held=held, stack=stack))

    def _tell_lost(self, when: str, exc: BaseException) -> None:
        self._lost += 1
        self.events.emit(ConnectionLost(name=self.name, when=when, error=describe(exc)))

    def _too_late(self, started: float) -> AcquireTimeout:
        stats = self.stats()
        failure = self._connector.last_failure
        return AcquireTimeout(
            f"{self.name}: no connection within {self._event_loop.time() - started:.1f} s: {stats.size} open of at "
            f"most {stats.max_size}, {stats.in_use} in use, {stats.idle} idle, {stats.waiting} waiting"
            + (f"; the last connect failed: {describe(failure)}" if failure else "")
        )


class _Acquire(PoolAcquireContext):
    """asyncpg's context, by way of the turnstile."""

    __slots__ = ()

    pool: AlternatingPool

    async def __aenter__(self) -> Any:
        if self.connection is not None or self.done:
            raise asyncpg.InterfaceError("a connection is already acquired")
        self.connection = await self.pool._check_out(self.timeout)
        return self.connection

    def __await__(self) -> Generator[Any, None, Any]:
        self.done = True
        coroutine: Awaitable[Any] = self.pool._check_out(self.timeout)
        return coroutine.__await__()


def _session_ended(pool_ref: weakref.ref[AlternatingPool], session: Session, _connection: Any) -> None:
    if pool := pool_ref():
        pool.ended(session)


create_pool = AlternatingPool
