"""Tests, without a network, whether asyncpg's protocol works with a stand-in in front of it.

This is production code. It runs once per process, for a fraction of a millisecond, before the first connection gets a
stand-in, which relies on asyncpg's internals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import asyncpg
from asyncpg.protocol.protocol import Protocol


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


READY = message(b"Z", b"I")
ANSWER = message(b"C", b"RESET\0") + READY
STATUS = message(b"S", b"TimeZone\0UTC\0")
NOTICE = message(b"N", b"SNOTICE\0C00000\0Mhi\0\0")
NOTIFICATION = message(b"A", b"\0\0\0\1news\0hi\0")


class Unexpected(Exception):
    """asyncpg did not behave as the stand-in needs it to."""


def run_self_test(stand_in_type: Callable[..., Any]) -> None:
    """Play a reset, a query and the end of a connection to a stand-in. Raises if anything is not as expected."""
    loop = asyncio.get_running_loop()
    transport, con = _Transport(), _Connection()
    parameters: Any = SimpleNamespace(user="self-test", password=None, database="self-test", server_settings=None)
    protocol = Protocol(("127.0.0.1", 1), loop.create_future(), parameters, asyncpg.Record, loop)
    protocol.set_connection(con)
    protocol.connection_made(transport)
    protocol.data_received(message(b"R", bytes(4)) + READY)

    outcome: list[BaseException | None] = []
    stand_in = stand_in_type(con, transport, protocol, outcome.append)
    _query(stand_in, protocol)
    stand_in.reset("RESET ALL", outcome.append)
    # If asyncpg got anything that it must not see, it would raise, or reject the query below.
    stand_in.data_received(STATUS + ANSWER + NOTICE + NOTIFICATION[:9])
    stand_in.lend()
    stand_in.data_received(NOTIFICATION[9:])
    _expect(outcome == [None], "a reset was not confirmed")
    _expect(protocol.get_settings().TimeZone == "UTC", "a ParameterStatus did not arrive")
    _expect(con.heard == ["notice", "news"], "a NoticeResponse or a NotificationResponse did not arrive")
    _query(stand_in, protocol)
    _expect(protocol.is_connected(), "the protocol is not connected")
    stand_in.watch()
    stand_in.connection_lost(None)
    is_noticed = con.heard[2:] == ["lost"] and len(outcome) == 2 and not protocol.is_connected()
    _expect(is_noticed, "the end of the connection was not noticed")


def _query(stand_in: Any, protocol: Any) -> None:
    query = protocol.query("SELECT 1", None)
    query.send(None)
    stand_in.data_received(ANSWER)
    try:
        query.send(None)
    except StopIteration as result:
        _expect(result.value == "RESET", "a query had another result")
    else:
        query.close()
        raise Unexpected("a query did not end")


def _expect(fact: bool, otherwise: str) -> None:
    if not fact:
        raise Unexpected(otherwise)


class _Connection:
    """The parts of a connection that asyncpg's protocol uses."""

    _config = SimpleNamespace(command_timeout=None)

    def __init__(self) -> None:
        self.heard: list[str] = []

    def _process_log_message(self, fields: object, last_query: object) -> None:
        self.heard.append("notice")

    def _process_notification(self, pid: int, channel: str, payload: str) -> None:
        self.heard.append(channel)

    def _cleanup(self) -> None:
        self.heard.append("lost")

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None:
        raise Unexpected("the connection was ended")


class _Transport(asyncio.Transport):
    """A transport that leads nowhere."""

    def write(self, data: object) -> None: ...
