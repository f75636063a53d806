"""Parses what the server sends while nobody uses a connection: the answer to a reset, a notice, a fatal error.

The rules, and why:

* Three kinds of messages may come at any time: ParameterStatus, NotificationResponse and NoticeResponse. asyncpg gets
  all of them, whole and in order, and handles them as on any idle connection.
* The answer to a reset is dropped, up to and including ReadyForQuery, which must report that no transaction is open.
  Later messages belong to the idle connection and are handled as above. When the connection is acquired, asyncpg gets
  the part of an incomplete message that has arrived, and everything after it.
* Anything else closes the connection: an error, an unexpected message, or a message that is too long. The same happens
  in the unlikely case that asyncpg's buffer held the first half of a message when the stand-in began to listen. Then
  the second half looks like an unknown message, a message of absurd length, or an incomplete answer.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

LONGEST = 1 << 20  # in bytes; neither an idle server nor a reset sends longer messages
LONGEST_USUAL = 1024
_AT_ANY_TIME = b"SAN"  # ParameterStatus, NotificationResponse, NoticeResponse
_OF_AN_IDLE_SERVER = _AT_ANY_TIME + b"E"  # ErrorResponse
_OF_AN_ANSWER = b"TDCIZ"  # RowDescription, DataRow, CommandComplete, EmptyQueryResponse, ReadyForQuery
_COMPLETE = b"CI"
READY = b"Z\0\0\0\x05"  # followed by a byte that says whether a transaction is open
FATAL = b"\0VFATAL\0"
_GOODBYE = re.compile(rb"E....S[^\0]+\0VFATAL\0", re.DOTALL)


class Stop(enum.Enum):
    """Why reading has stopped."""

    READY = enum.auto()  # the answer is complete, and no transaction is open
    ERROR = enum.auto()  # an ErrorResponse; on an idle connection, it means that the server closes the connection
    UNEXPECTED = enum.auto()  # a message that does not belong here, so what follows cannot be understood


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of reading some bytes: messages for asyncpg and, if reading has stopped, why."""

    forward: bytes
    stop: Stop | None = None
    fields: dict[str, str] | None = None  # of an ErrorResponse
    why: str = ""  # the reason for UNEXPECTED


CLEAN = Heard(b"", Stop.READY)


class MessageReader:
    """Parses what the server sends. It is pure, so that tests can try every way to split the bytes."""

    __slots__ = ("_expects_answer", "_is_answered", "_usual", "partial")

    def __init__(self) -> None:
        self.partial = bytearray()
        self._expects_answer = False
        self._is_answered = False
        self._usual = b""  # the last complete answer with nothing in it for asyncpg; most answers are equal to it

    def expect(self) -> None:
        """From now on, accept the answer to one query."""
        self._expects_answer, self._is_answered = True, False

    def take_partial(self) -> bytes:
        """Hand over the beginning of an incomplete message."""
        partial = bytes(self.partial)
        self.partial.clear()
        return partial

    def hear(self, data: bytes) -> Heard:
        """Parse what has arrived. After READY, call this with ``b""`` to parse the rest."""
        if data == self._usual and self._expects_answer and not self.partial:
            self._expects_answer = False
            return CLEAN
        is_begun = self.partial or self._is_answered
        heard = self._read(data)
        if heard == CLEAN and not is_begun and not self.partial and len(data) <= LONGEST_USUAL:
            self._usual = data
        return heard

    def _read(self, data: bytes) -> Heard:
        stream = self.partial
        stream += data
        at = 0
        forward: list[bytes] = []
        try:
            while len(stream) - at >= 5:
                kind, length = stream[at], int.from_bytes(stream[at + 1 : at + 5], "big")
                if why := self._objection(kind, length):
                    return Heard(b"".join(forward), Stop.UNEXPECTED, why=why)
                end = at + 1 + length
                if len(stream) < end:
                    break
                message, at = bytes(stream[at:end]), end
                if kind in _AT_ANY_TIME:
                    forward.append(message)
                elif kind == ord("E"):
                    fields = _fields(message)
                    return Heard(b"".join(forward) + message * is_fatal(fields), Stop.ERROR, fields)
                elif kind == ord("Z"):
                    return self._ready(message, b"".join(forward))
                elif kind in _COMPLETE:
                    self._is_answered = True
            return Heard(b"".join(forward))
        finally:
            del stream[:at]

    def _objection(self, kind: int, length: int) -> str:
        if kind not in _OF_AN_IDLE_SERVER and not (self._expects_answer and kind in _OF_AN_ANSWER):
            return f"a message of kind {chr(kind)!r}"
        if not 4 <= length <= LONGEST:
            return f"a message of kind {chr(kind)!r} and {length} bytes"
        return ""

    def _ready(self, message: bytes, forward: bytes) -> Heard:
        if not self._is_answered or message != b"Z\0\0\0\x05I":
            return Heard(forward, Stop.UNEXPECTED, why="a ReadyForQuery without an answer, or in a transaction")
        self._expects_answer = False
        return Heard(forward, Stop.READY)


def _fields(message: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse, as ``asyncpg.PostgresError.new()`` expects them."""
    fields = (field for field in message[5:].split(b"\0") if field)
    return {chr(field[0]): field[1:].decode("utf-8", "replace") for field in fields}


def is_fatal(fields: dict[str, str]) -> bool:
    """Whether an ErrorResponse ends the session."""
    return fields.get("V", fields.get("S")) in ("FATAL", "PANIC")


def fatal_error(data: bytes) -> Heard | None:
    """The fatal error in ``data``, if any, with which the server closes the connection. It may follow an answer."""
    found = _GOODBYE.search(data)
    heard = MessageReader().hear(data[found.start() :] if found else data)
    return heard if heard.fields and is_fatal(heard.fields) else None
