"""What the pool needs of asyncpg that has no public way.

Each function has a test that fails when asyncpg changes what it relies on. Where other people's code may stand between
(an agent's proxy around the protocol, a metaclass), there is a way to go on without.
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
    """The connection behind what ``acquire()`` gave; None if it was released, or is nothing of the kind."""
    return connection._con if type(connection) is PoolConnectionProxy else None  # type: ignore[attr-defined]


def reattach(connection: Any, con: Any) -> None:
    """Let what ``setup=`` was given still answer for its closed connection, as asyncpg does where a setup fails."""
    connection._con = con


# How much a connection has run whose class `counting_class` made. (In C: this is called twice for each checkout.)
queries_run = operator.attrgetter("_protocol.queries_count", "others_run")
connection_of = operator.attrgetter("_con")  # of a proxy that was just handed out, or of a place


def has_transaction(con: Any) -> bool:
    """Whether a release rolls back: the server has a transaction open, or asyncpg believes so."""
    return con._top_xact is not None or con._protocol.is_in_transaction()


def busy_check(con: Any) -> Callable[..., bool | None]:
    """A function that says whether a query runs on ``con``, or one that was cancelled has not ended yet.

    It returns None where that cannot be known without asking the server. ``has_run=False`` promises that `queries_run`
    has not changed since the connection was idle, which spares the dearer half of the check.
    """
    protocol = getattr(con._protocol, "__wrapped__", con._protocol)  # monitoring agents put a proxy around it
    is_cancelling = protocol._is_cancelling
    section = con._stmt_exclusive_section  # held from a preparation to the result, when the protocol may seem free
    try:
        # asyncpg reports a running query only when you start another. So start one that it refuses to send: closing a
        # statement that is in use.
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
    """The transport and the protocol under a connection; None if either is not asyncpg's own, but an agent's proxy."""
    transport: Any = getattr(con, "_transport", None)
    protocol = getattr(con, "_protocol", None)
    if type(protocol) is Protocol and hasattr(transport, "is_reading") and transport.get_protocol() is protocol:
        return transport, protocol
    return None


def address_of(con: Any) -> str | None:
    """Where a connection leads, for a log: a host and port, or a socket's path. None if asyncpg does not say."""
    match getattr(con, "_addr", None):
        case (str(host), int(port), *_):
            return f"{host}:{port}"
        case str(path):
            return path
    return None


# The hot path. asyncpg's own acquire() and release() are right, but they take three coroutines and a context more: a
# tenth of what an acquire, a short query and a release cost the client.


def next_place(pool: Any) -> Any:
    """Take a place (a holder, in asyncpg's words) out of the pool's queue, one with a connection if there is one.

    None if all are taken.
    """
    try:
        return pool._queue.get_nowait()
    except asyncio.QueueEmpty:
        return None


def restore_floor(pool: Any) -> None:
    """Let asyncpg open connections in the background until there are ``min_size``, unless it does so already."""
    pool._schedule_min_size_maintenance()


def restores_floor(pool: Any) -> bool:
    """Whether the current task is the one in which asyncpg does so."""
    return pool._maintenance_task is not None and pool._maintenance_task is asyncio.current_task()


def put_back(place: Any) -> None:
    """Return a place to the queue."""
    place._pool._queue.put_nowait(place)


def hand_out(place: Any) -> Any:
    """Do what ``acquire()`` of a place does where its connection is open, and has no setup and no timer.

    The place counts as of the pool's current generation. Otherwise asyncpg would close the connection when it is
    released after an ``expire_connections()`` that came before its acquire.
    """
    pool = place._pool
    place._generation = pool._generation
    place._proxy = proxy = PoolConnectionProxy(place, place._con)
    place._in_use = pool._loop.create_future()
    return proxy


def vacate(place: Any) -> None:
    """Take the connection out of a place, which hears of it no more."""
    place._con = None


def exchange(old: Any, new: Any) -> None:
    """Put the connection ``new`` into the place of ``old``, which hears of ``old`` no more."""
    place = old._pool_holder()
    place._con, new._pool_holder = new, weakref.ref(place)
    place._generation = place._pool._generation


def place_of(con: Any) -> Any:
    """The place of a connection."""
    return con._pool_holder()


def give(connection: Any, timeout: float | None, name: str) -> asyncio.Task[None]:
    """Release as ``asyncpg.Pool.release()`` does, in a task of its own: the caller's may be cancelled."""
    connection._con._on_release()
    return asyncio.create_task(_release(connection._holder, timeout), name=name)


async def _release(place: Any, timeout: float | None) -> None:
    if asyncio.get_running_loop().get_task_factory() is not None:
        await asyncio.sleep(0)  # an eager task would overtake the end of a query that was just cancelled
    await place.release(timeout)


def give_at_once(connection: Any) -> None:
    """Release an open connection that is not busy, with no transaction to roll back, and no timer to arm."""
    let_go(connection)._release()


def let_go(connection: Any) -> Any:
    """Take a connection that need not roll back from whoever had it, and return its place, which stays taken."""
    con, place = connection._con, connection._holder
    if con._listeners or con._log_listeners:
        _drop_listeners(con)
    else:
        con._pool_release_ctr += 1  # all that asyncpg would do; to have it look for listeners costs a microsecond
    connection._detach()
    place._proxy = None
    return place


def _drop_listeners(con: Any) -> None:
    con._on_release()  # warns of them
    try:
        con._reset().send(None)
    except StopIteration:
        return
    con.terminate()
    raise asyncpg.InternalClientError("asyncpg waits for the server to undo nothing")


def free(place: Any) -> None:
    """Return the place of a connection that was taken with :func:`let_go`."""
    place._release()


def give_place(connection: Any) -> None:
    """Release a place whose connection has just been exchanged: nothing is to be reset."""
    connection._con._on_release()
    connection._holder._release()


class _Unregistered:
    """Comes first among the bases, so that a connection class's own ``__init_subclass__`` never hears of the copy."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


_COPIES = ("copy_from_table", "copy_from_query", "copy_to_table", "copy_records_to_table")


@functools.cache
def counting_class(base: Any) -> Any:
    """A subclass of a connection class that counts what asyncpg's count of queries leaves out.

    A COPY may change a session, too, and a statement that is being prepared keeps the connection busy. None if the
    class permits no subclass.
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
        self.others_run += 1  # it will prepare its statement
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
        logger.debug("%s permits no subclass, so every release resets its session", base.__qualname__, exc_info=True)
        return None
