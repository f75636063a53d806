"""What the pool needs of asyncpg that has no public way. Each has a test that fails when asyncpg changes it."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.protocol.protocol import PreparedStatementState, Protocol


def raw_connection(connection: object) -> Any:
    """The connection behind what ``acquire()`` gave; None if it was released, or is nothing of the kind."""
    return connection._con if type(connection) is PoolConnectionProxy else None  # type: ignore[attr-defined]


def reattach(connection: Any, con: Any) -> None:
    """Let what ``setup=`` was given still answer for its closed connection, as asyncpg does where a setup fails."""
    connection._con = con


# How many queries and COPYs a connection has run, whose class `counting_copies` made. (In C: this is called twice for
# each checkout.)
queries_run = operator.attrgetter("_protocol.queries_count", "copies_run")
connection_of = operator.attrgetter("_con")  # of a proxy that was just handed out


def has_transaction(con: Any) -> bool:
    """Whether a release rolls back: the server has a transaction open, or asyncpg believes so."""
    return con._top_xact is not None or con.is_in_transaction()


def busy_check(con: Any) -> Callable[[], bool]:
    """What tells whether a query runs on ``con``, or one that was cancelled has not ended yet."""
    # asyncpg tells only whoever asks for a query. So ask for one that it will not make: to close a statement in use.
    in_use = PreparedStatementState("", "", con._protocol, con._protocol.get_record_class(), False)
    in_use.attach()
    close_statement = con._protocol.close_statement
    is_cancelling = con._protocol._is_cancelling
    section = con._stmt_exclusive_section  # from a preparation to the result, and in between, where all seems free

    def is_busy() -> bool:
        if section._acquired or is_cancelling():
            return True
        try:
            close_statement(in_use, None).send(None)
        except asyncpg.InternalClientError:
            return False
        except asyncpg.InterfaceError:
            return True
        raise AssertionError("asyncpg closes a statement that is in use")

    return is_busy


def wire(con: Any) -> tuple[Any, Any] | None:
    """The transport and the protocol under a connection; None if either is not asyncpg's own, but an agent's proxy."""
    transport: Any = getattr(con, "_transport", None)
    protocol = getattr(con, "_protocol", None)
    if type(protocol) is Protocol and hasattr(transport, "is_reading") and transport.get_protocol() is protocol:
        return transport, protocol
    return None


# The hot path. asyncpg's own acquire() and release() are right, and three coroutines and a context longer: a tenth of
# what an acquire, a short query and a release cost the client.


def next_holder(pool: Any) -> Any:
    """Take a place out of asyncpg's queue, one with a connection if there is one; None where asyncpg would wait."""
    try:
        return pool._queue.get_nowait()
    except (asyncio.QueueEmpty, AttributeError):  # or the pool is not initialized, which asyncpg tells
        return None


def put_back(pool: Any, holder: Any) -> None:
    """Return a place whose ``acquire()`` failed."""
    pool._queue.put_nowait(holder)
    pool._schedule_min_size_maintenance()


def give(connection: Any) -> Awaitable[None]:
    """Release, as ``asyncpg.Pool.release()`` does, whatever becomes of the caller's task."""
    connection._con._on_release()
    return asyncio.shield(connection._holder.release(None))


def give_at_once(connection: Any) -> None:
    """Release an open connection that is not busy, with no transaction to roll back, and no timer to arm."""
    con, holder = connection._con, connection._holder
    con._on_release()
    try:
        con._reset().send(None)
    except StopIteration:
        holder._release()
    else:
        con.terminate()
        raise asyncpg.InternalClientError("asyncpg waits for the server to undo nothing")


@functools.cache
def counting_copies(base: Any) -> Any:
    """A subclass of a connection class that counts COPY: asyncpg does not, and a COPY may change a session too."""

    def counted(name: str) -> Any:
        copy = getattr(base, name)

        @functools.wraps(copy)
        async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.copies_run += 1
            return await copy(self, *args, **kwargs)

        return run

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        self.copies_run = 0

    copies = ("copy_from_table", "copy_from_query", "copy_to_table", "copy_records_to_table")
    identity = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"__slots__": ("copies_run",), "__init__": init, **identity, **{name: counted(name) for name in copies}}
    return type(base)(base.__name__, (base,), members)
