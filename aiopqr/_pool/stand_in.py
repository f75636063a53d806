"""Stands between the transport and asyncpg's protocol: resets sessions, and hears the server while it is idle.

asyncpg resets a session with a query like any other: a task, futures, its state machine. Where queries are short, that
is a third of the client's work. Here the same query is written straight to the transport, and a protocol of our own
hears the answer in the place of asyncpg's: the stand-in. It also listens while the connection is idle, since asyncpg
would notice only at the next query that the server has said goodbye.

While somebody uses the connection the stand-in hands everything on unseen. Why it may do more at other times:

- It listens only when asyncpg waits for nothing, and has nothing of its own on the way (`StandIn.is_possible`, and
  the pool's check that no query runs). asyncpg's protocol is idle then, and stays so until it is used again.
- What it hears is judged in `idle_messages`: which messages asyncpg gets, which are the answer to the reset, and which
  end the connection.
- All other events (the end of the connection, writing to be paused) are handed on at once.
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
from .idle_messages import CLEAN, FATAL, READY, Heard, Listener, Verdict, is_fatal, last_word
from .self_test import run_self_test

logger = logging.getLogger("aiopqr")

Done = Callable[[BaseException | None], None]


@functools.lru_cache(maxsize=64)
def _query_message(query: str) -> bytes:
    body = query.encode() + b"\0"
    return b"Q" + (len(body) + 4).to_bytes(4, "big") + body


def stand_in_for(con: Any, on_goodbye: Callable[[BaseException], None]) -> StandIn | None:
    """Put a stand-in before a connection's protocol.

    None where that cannot be relied on: an agent's proxy is there, or asyncpg is not as expected.
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
            "asyncpg %s is not as expected inside (%s: %s): aiopqr leaves the reset of sessions to it, which is slower."
            " Please report this to aiopqr.",
            asyncpg.__version__,
            type(exc).__name__,
            exc,
        )
        return False
    return True


class StandIn(asyncio.Protocol):
    """Hears the server in the place of asyncpg's ``protocol`` while the pool has the connection.

    ``on_goodbye`` is called when the server ends an idle connection, which is closed by then.
    """

    __slots__ = (
        "_con", "_done", "_forward", "_goodbye", "_is_lent", "_listener", "_on_goodbye", "_protocol", "_transport",
        "answered",
    )  # fmt: skip

    def __init__(
        self, con: Any, transport: asyncio.Transport, protocol: Any, on_goodbye: Callable[[BaseException], None]
    ) -> None:
        self._con = weakref.ref(con)  # the transport must not keep a connection that nobody has any more
        self._transport = transport
        self._protocol = protocol
        self._forward: Callable[[bytes], None] = protocol.data_received
        self._on_goodbye = on_goodbye
        self._listener = Listener()
        self._done: Done | None = None
        self._is_lent = True
        self._goodbye: BaseException | None = None
        # Of the queries that asyncpg counts as begun, those that were answered when the server was last ready for more.
        # (Its message may also be the end of a piece of a longer one. That is no harm: then the query still runs, and
        # whoever releases a connection meanwhile is found out by what comes next, only later.)
        self.answered = -1

    # What the pool calls.

    @property
    def is_possible(self) -> bool:
        """Whether it may listen, provided that no query of asyncpg's is under way."""
        transport = self._transport
        return (
            transport.get_protocol() is self
            and transport.is_reading()
            and not transport.get_write_buffer_size()
            and not transport.is_closing()
        )

    def reset(self, query: str, done: Done) -> None:
        """Have the server run ``query``, and call ``done`` with None once it has, or with what went wrong.

        In that case the connection is closed. Only if :attr:`is_possible`.
        """
        message = _query_message(query)
        self._is_lent = False
        self._listener.expect()
        self._done = done
        try:
            self._transport.write(message)
        except Exception as exc:
            self._end(exc)

    def watch(self) -> None:
        """The connection is idle from now on. Only if no query of asyncpg's is under way."""
        self._is_lent = False
        if self._goodbye is not None:  # it came to somebody who ran nothing, so asyncpg has not noticed
            self._end(self._goodbye)

    def lend(self) -> None:
        """Somebody is about to use the connection."""
        self._is_lent = True
        if self._listener.partial:
            self._forward(self._listener.take_partial())

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._is_lent:
            self._forward(data)
            if data[-6:-1] == READY:
                self.answered = self._protocol.queries_count
            elif data[:1] == b"E" or FATAL in data:
                goodbye = last_word(data)
                self._goodbye = _error(goodbye) if goodbye else None
        else:
            self._hear(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()  # type: ignore[no-any-return]

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        if self._done is not None:
            self._finish(_lost("", exc))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # What is heard.

    def _hear(self, data: bytes) -> None:
        heard = self._listener.hear(data)
        if heard is CLEAN:
            return self._finish(None)
        if heard.forward:
            self._forward(heard.forward)
        if heard.verdict is Verdict.READY:
            self._finish(None)
            if self._listener.partial and not self._is_lent:
                self._hear(b"")
        elif heard.verdict is not None:
            self._end(_error(heard))
        return None

    def _end(self, error: BaseException) -> None:
        """Whatever comes now, nobody must get this connection."""
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
        return asyncpg.InternalClientError(f"the server sent {heard.why} to a connection that is in the pool")
    error = asyncpg.PostgresError.new(heard.fields)
    if is_fatal(heard.fields):
        return _lost(f": {error}", error)
    return error


def _lost(why: str, cause: BaseException | None) -> BaseException:
    error = asyncpg.ConnectionDoesNotExistError(f"the connection was closed in the middle of operation{why}")
    error.__cause__ = cause
    return error
