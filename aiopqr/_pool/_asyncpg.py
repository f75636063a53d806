"""The private parts of asyncpg that the pool relies on.

Each function has a test that fails if asyncpg changes what the function relies on. Other people's code can get in the
way as well (an agent's proxy around the protocol, a metaclass), so there is a fallback for that.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import operator
import weakref
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.protocol.protocol import PreparedStatementState, Protocol

logger = logging.getLogger("aiopqr")


def raw_connection(connection: object) -> Any:
    """The connection inside the proxy that ``acquire()`` returned; None if it was released, or is not such a proxy."""
    return connection._con if type(connection) is PoolConnectionProxy else None  # type: ignore[attr-defined]


def reattach(connection: Any, con: Any) -> None:
    """Put the closed connection back into the proxy that ``setup=`` got, as asyncpg does if a setup fails."""
    connection._con = con


# How many operations a connection has run, if its class comes from `counting_class`. Called twice per checkout, so it
# is an attrgetter, which is fast.
queries_run = operator.attrgetter("_protocol.queries_count", "others_run")
connection_of = operator.attrgetter("_con")  # for a proxy that was just handed out, or for a place


def has_transaction(con: Any) -> bool:
    """Whether a release has to roll back: the server has an open transaction, or asyncpg thinks so."""
    return con._top_xact is not None or con._protocol.is_in_transaction()


def busy_check(con: Any) -> Callable[..., bool | None]:
    """Make a function that returns whether ``con`` is busy: a query is running, or one is still being cancelled.

    It returns None if only the server can tell. Call it with ``has_run=False`` if `queries_run` has not changed since
    the connection was idle. That skips the expensive half of the check.
    """
    protocol = getattr(con._protocol, "__wrapped__", con._protocol)  # monitoring agents wrap it in a proxy
    is_cancelling = protocol._is_cancelling
    section = con._stmt_exclusive_section  # held from prepare to result, even while the protocol looks idle
    try:
        # asyncpg only reports a running query when you start another one. So start an operation that it never sends:
        # closing a statement that is in use.
        in_use = PreparedStatementState("", "", protocol, protocol.get_record_class(), False)
        in_use.attach()
        close_statement = protocol.close_statement
    except (TypeError, AttributeError):
        return lambda has_run=True: True if section._acquired or is_cancelling() else None

    def is_busy(has_run: bool = True) -> bool | None:
        if section._acquired or is_cancelling():
            return True
        if not has_run:
            return False
        try:
            close_statement(in_use, None).send(None)
        except asyncpg.InternalClientError:
            return False
        except asyncpg.InterfaceError:
            return True
        except StopIteration:
            pass
        return None

    return is_busy


def wire(con: Any) -> tuple[Any, Any] | None:
    """The transport and the protocol of a connection; None if either has been replaced by an agent's proxy."""
    transport: Any = getattr(con, "_transport", None)
    protocol = getattr(con, "_protocol", None)
    if type(protocol) is Protocol and hasattr(transport, "is_reading") and transport.get_protocol() is protocol:
        return transport, protocol
    return None


def address_of(con: Any) -> str | None:
    """A connection's server, for logs: a host and port, or a socket's path. None if asyncpg does not know."""
    match getattr(con, "_addr", None):
        case (str(host), int(port), *_):
            return f"{host}:{port}"
        case str(path):
            return path
    return None


# The hot path. asyncpg's own acquire() and release() would work, but they take three more coroutines and one more
# context. Without those, an acquire, a short query and a release cost the client a tenth less.


def next_place(pool: Any) -> Any:
    """Take a place (asyncpg calls it a holder) out of the pool's queue, preferably one with a connection.

    None if all places are taken.
    """
    try:
        return pool._queue.get_nowait()
    except asyncio.QueueEmpty:
        return None


def restore_floor(pool: Any) -> None:
    """Let asyncpg open connections in the background until there are ``min_size``, unless it is already doing so."""
    pool._schedule_min_size_maintenance()


def restores_floor(pool: Any) -> bool:
    """Whether the current task is the one in which asyncpg opens those connections."""
    return pool._maintenance_task is not None and pool._maintenance_task is asyncio.current_task()


def put_back(place: Any) -> None:
    """Return a place to the queue."""
    place._pool._queue.put_nowait(place)


def hand_out(place: Any) -> Any:
    """Do what ``acquire()`` of a place does if its connection is open and there is no setup and no timer.

    This also brings the place up to the pool's current generation. Otherwise, if ``expire_connections()`` was called
    before the acquire, asyncpg would close the connection on release.
    """
    pool = place._pool
    place._generation = pool._generation
    place._proxy = proxy = PoolConnectionProxy(place, place._con)
    place._in_use = pool._loop.create_future()
    return proxy


def vacate(place: Any) -> None:
    """Take the connection out of a place. Its end will no longer affect the place."""
    place._con = None


def exchange(old: Any, new: Any) -> None:
    """Put the connection ``new`` into the place of ``old``. The end of ``old`` will no longer affect the place."""
    place = old._pool_holder()
    place._con, new._pool_holder = new, weakref.ref(place)
    place._generation = place._pool._generation


def place_of(con: Any) -> Any:
    """The place of a connection."""
    return con._pool_holder()


def release_in_task(
    connection: Any, timeout: float | None, name: str, on_free: Callable[[], None]
) -> asyncio.Task[None]:
    """Release as ``asyncpg.Pool.release()`` does, in a separate task, since the caller's may be cancelled.

    The place stays taken until the end, even if the connection ends before that: otherwise asyncpg, which only knows
    the place, would continue with whatever the next task has put there. ``on_free`` is called when the place is free.
    """
    con, place = connection._con, connection._holder
    con._on_release()
    con._pool_holder = _no_place
    return asyncio.create_task(_release(con, place, timeout, on_free), name=name)


async def _release(con: Any, place: Any, timeout: float | None, on_free: Callable[[], None]) -> None:
    try:
        if asyncio.get_running_loop().get_task_factory() is not None:
            await asyncio.sleep(0)  # an eager task would run before a query that was just cancelled has ended
        await place.release(timeout)
    finally:
        con._pool_holder = weakref.ref(place)
        if con.is_closed():
            con.terminate()  # frees the place
        on_free()


def _no_place() -> None:
    """Replaces a connection's reference to its place during its release, so that its end does not free the place."""


def release_now(connection: Any) -> None:
    """Release an open connection that is not busy, has no transaction to roll back, and needs no timer."""
    detach(connection)._release()


def detach(connection: Any) -> Any:
    """Take a connection with no transaction to roll back from its user. Returns its place, which stays taken."""
    con, place = connection._con, connection._holder
    if con._listeners or con._log_listeners:
        _drop_listeners(con)
    else:
        con._pool_release_ctr += 1  # all that asyncpg would do; its own check for listeners costs a microsecond
    connection._detach()
    place._proxy = None
    return place


def _drop_listeners(con: Any) -> None:
    con._on_release()  # warns about them
    try:
        con._reset().send(None)
    except StopIteration:
        return
    con.terminate()
    raise asyncpg.InternalClientError("asyncpg waits for the server although there is nothing to undo")


def free(place: Any) -> None:
    """Return the place of a connection after :func:`detach`."""
    place._release()


class _Unregistered:
    """The first base of the subclass below, so that a user's ``__init_subclass__`` is not called for it."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


_COPIES = ("copy_from_table", "copy_from_query", "copy_to_table", "copy_records_to_table")


@functools.cache
def counting_class(base: Any) -> Any:
    """A subclass of a connection class that also counts the operations which asyncpg does not count as queries.

    They matter: a COPY can change the session, and preparing a statement keeps the connection busy. None if the class
    cannot be subclassed.
    """

    def counted(name: str) -> Any:
        method = getattr(base, name)

        @functools.wraps(method)
        async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.others_run += 1
            return await method(self, *args, **kwargs)

        return run

    @functools.wraps(base.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.others_run += 1  # a cursor prepares its statement
        return base.cursor(self, *args, **kwargs)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        self.others_run = 0

    identity = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"__slots__": ("others_run",), "__init__": init, "cursor": cursor, **identity}
    members |= {name: counted(name) for name in ("prepare", *_COPIES)}
    try:
        return type(base)(base.__name__, (_Unregistered, base), members)
    except Exception:
        logger.debug("%s cannot be subclassed, so every release resets its session", base.__qualname__, exc_info=True)
        return None
