"""A protocol between the transport and asyncpg's: it resets sessions, and listens to the server on idle connections.

asyncpg resets a session with an ordinary query: a task, futures, its state machine. If queries are short, that is a
third of the client's work. Here the same query is written straight to the transport, and a protocol of our own, the
stand-in, reads the answer instead of asyncpg's. It also listens while the connection is idle, since asyncpg would only
notice at the next query that the server has closed the connection.

While the connection is in use, the stand-in passes everything on unchanged. Why it may do more at other times:

- It listens only while asyncpg expects no answer and has nothing left to send (`StandIn.is_possible`, and the pool's
  check that no query is running). Then asyncpg's protocol is idle, and stays so until it is used again.
- `idle_messages` decides which messages asyncpg gets, which belong to the answer to the reset, and which close the
  connection.
- All other events (the connection was lost, writing must pause) are passed on immediately.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import asyncpg

from ._asyncpg import wire
from .idle_messages import CLEAN, FATAL, READY, Heard, MessageReader, Stop, fatal_error, is_fatal
from .self_test import run_self_test

logger = logging.getLogger("aiopqr")

Done = Callable[[BaseException | None], None]


@functools.lru_cache(maxsize=64)
def _query_message(query: str) -> bytes:
    body = query.encode() + b"\0"
    return b"Q" + (len(body) + 4).to_bytes(4, "big") + body


def stand_in_for(con: Any, on_goodbye: Callable[[BaseException], None]) -> StandIn | None:
    """Put a stand-in in front of a connection's protocol.

    Returns None if that would not be reliable: an agent's proxy is in the way, or asyncpg is not as expected.
    """
    found = wire(con)
    if found is None or not _is_reliable():
        return None
    transport, protocol = found
    stand_in = StandIn(con, transport, protocol, on_goodbye)
    transport.set_protocol(stand_in)
    return stand_in


@functools.cache
def _is_reliable() -> bool:
    try:
        run_self_test(StandIn)
    except Exception as exc:
        logger.warning(
            "the internals of asyncpg %s are not as expected (%s: %s), so aiopqr lets it reset sessions, which is "
            "slower. Please report this to aiopqr",
            asyncpg.__version__,
            type(exc).__name__,
            exc,
        )
        return False
    return True


class StandIn(asyncio.Protocol):
    """Listens to the server instead of asyncpg's ``protocol`` while nobody uses the connection.

    ``on_goodbye`` is called after the server, or something in between, has closed an idle connection.
    """

    __slots__ = (
        "_con", "_done", "_forward", "_goodbye", "_is_lent", "_on_goodbye", "_protocol", "_reader", "_transport",
        "answered",
    )  # fmt: skip

    def __init__(
        self, con: Any, transport: asyncio.Transport, protocol: Any, on_goodbye: Callable[[BaseException], None]
    ) -> None:
        self._con = weakref.ref(con)  # the transport must not keep an unused connection alive
        self._transport = transport
        self._protocol = protocol
        self._forward: Callable[[bytes], None] = protocol.data_received
        self._on_goodbye = on_goodbye
        self._reader = MessageReader()
        self._done: Done | None = None
        self._is_lent = True
        self._goodbye: BaseException | None = None
        # asyncpg's count of queries when the server last sent ReadyForQuery. (The bytes may also be part of a longer
        # message. That does no harm: the query is still running then, so if the connection is released at that moment,
        # the rest of the message is unexpected and closes the connection.)
        self.answered = -1

    # What the pool calls.

    @property
    def is_possible(self) -> bool:
        """Whether it may listen, provided that asyncpg is not running a query."""
        transport = self._transport
        return (
            transport.get_protocol() is self
            and transport.is_reading()
            and not transport.get_write_buffer_size()
            and not transport.is_closing()
        )

    def reset(self, query: str, done: Done) -> None:
        """Make the server run ``query``. Then call ``done`` with None, or with an error after closing the connection.

        Call this only if :attr:`is_possible`.
        """
        message = _query_message(query)
        self._is_lent = False
        self._reader.expect()
        self._done = done
        try:
            self._transport.write(message)
        except Exception as exc:
            self._end(exc)

    def watch(self) -> None:
        """Listen, since the connection is idle from now on. Call this only if asyncpg is not running a query."""
        self._is_lent = False
        if self._goodbye is not None:  # it came while the connection was in use but ran nothing, so asyncpg missed it
            self._end(self._goodbye)

    def lend(self) -> None:
        """Stop listening, because the connection is about to be used."""
        self._is_lent = True
        if self._reader.partial:
            self._forward(self._reader.take_partial())

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._is_lent:
            self._forward(data)
            self._goodbye = None  # a goodbye is the last thing that comes, so the one before was part of a value
            if data[-6:-1] == READY:
                self.answered = self._protocol.queries_count
            elif data[:1] == b"E" or FATAL in data:
                goodbye = fatal_error(data)
                self._goodbye = _error(goodbye) if goodbye else None
        else:
            self._hear(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()  # type: ignore[no-any-return]

    def connection_lost(self, exc: Exception | None) -> None:
        con = self._con()
        is_surprise = con is not None and not con.is_closed()  # asyncpg marks it as closed before it closes it
        self._protocol.connection_lost(exc)
        if self._done is not None:
            self._finish(_lost("", exc))
        elif is_surprise and not self._is_lent:
            self._on_goodbye(_lost("", exc))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # What the reader makes of it.

    def _hear(self, data: bytes) -> None:
        heard = self._reader.hear(data)
        if heard is CLEAN:
            return self._finish(None)
        if heard.forward:
            self._forward(heard.forward)
        if heard.stop is Stop.READY:
            self._finish(None)
            if self._reader.partial and not self._is_lent:
                self._hear(b"")
        elif heard.stop is not None:
            self._end(_error(heard))
        return None

    def _end(self, error: BaseException) -> None:
        """Close the connection and report the error, since the connection must not be used again."""
        if con := self._con():
            con.terminate()
        if self._done is not None:
            self._finish(error)
        else:
            self._on_goodbye(error)

    def _finish(self, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)


def _error(heard: Heard) -> BaseException:
    if heard.fields is None:
        return asyncpg.InternalClientError(f"the server sent {heard.why} on a connection that is in the pool")
    error = asyncpg.PostgresError.new(heard.fields)
    if is_fatal(heard.fields):
        return _lost(f": {error}", error)
    return error


def _lost(why: str, cause: BaseException | None) -> BaseException:
    error = asyncpg.ConnectionDoesNotExistError(f"the connection was closed in the middle of operation{why}")
    error.__cause__ = cause
    return error
