"""A server's authentication requests, answered in place of asyncpg: one protocol that stands between the transport and
asyncpg's own until the server has said yes, or no, or something that is asyncpg's to answer.

It stands apart from `login` because it needs nothing of asyncpg but its three exceptions: it is fed bytes and writes
bytes, so that a hostile server is a list of bytes in a test.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from ..credentials import Secret
from .scram import MECHANISM, Challenge, Exchange, Keys, ScramError, TooManyIterations, WrongSignature

_LONGEST = 65536  # bytes of a message before AuthenticationOk; libpq allows 2,000 for a request, 30,000 for an error
_OK, _CLEARTEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12
# No such request exists: asyncpg ends the login with an InterfaceError, and login() raises the true one in its place.
_UNKNOWN_REQUEST = b"R\x00\x00\x00\x08\x7f\xff\xff\xff"


@dataclass(slots=True)
class Claim:
    """Who logs in, and what came of it. Emptied when the login is over."""

    user: str
    password: Secret | None
    keys: Callable[[Secret, Challenge], Keys | asyncio.Future[Keys]] | None
    handled: bool = False
    failure: Exception | None = None

    def drop(self) -> None:
        """Forget the password and all that leads to it."""
        self.password = self.keys = self.failure = None


class Handshake(asyncio.Protocol):
    """Answers the server's authentication requests in place of asyncpg's protocol, to which it then gives way."""

    def __init__(self, claim: Claim, inner: Any, transport: asyncio.Transport | None = None) -> None:
        claim.handled = True
        self.inner = inner
        self._claim = claim
        self._transport = transport
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._deriving: asyncio.Future[Keys] | None = None
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        if not self._over:
            self._buffer += data
            self._advance()

    def _advance(self) -> None:
        """Take the messages that are complete, up to one that asyncpg's protocol is to have."""
        while not self._over and self._buffer:
            if self._buffer[:1] == b"E":
                return self._give_way()
            if self._deriving is not None or len(self._buffer) < 5:
                break
            end = 1 + int.from_bytes(self._buffer[1:5], "big")
            if not 5 <= end <= _LONGEST:
                return self._malformed("a message of impossible length")
            if len(self._buffer) < end:
                break
            message = bytes(self._buffer[:end])
            if message[:1] in b"Nv":  # NoticeResponse, NegotiateProtocolVersion
                del self._buffer[:end]
                self.inner.data_received(message)
            elif message[:1] == b"R" and end >= 9:
                self._requested(int.from_bytes(message[5:9], "big"), message[9:], end)
            elif self._exchange is None:
                return self._give_way()
            else:
                return self._malformed("a message that is no part of it")
        if len(self._buffer) > _LONGEST:
            self._malformed("more than was asked for")
        return None

    def _requested(self, request: int, body: bytes, end: int) -> None:
        """Answer one authentication request, or leave it to asyncpg."""
        exchange = self._exchange
        password = self._claim.password
        if password is None:  # the login was given up; asyncpg closes the transport
            return self._finish()
        try:
            if exchange is None and request == _SASL and MECHANISM.encode() in body.split(b"\0"):
                self._exchange = exchange = Exchange()
                first = exchange.first
                self._send(MECHANISM.encode() + b"\0" + len(first).to_bytes(4, "big") + first)
            elif exchange is None:
                if request == _CLEARTEXT:
                    del self._buffer[:end]
                    self._send(password.reveal().encode() + b"\0")
                elif request == _MD5:
                    del self._buffer[:end]
                    self._send(_md5(self._claim.user, password, body))
                return self._give_way()
            elif request == _SASL_CONTINUE:
                self._prove(exchange.challenged(body), password)
            elif request == _SASL_FINAL:
                exchange.verify(body)
            elif request == _OK and exchange.verified:
                return self._give_way()
            elif request == _OK:
                raise WrongSignature
            else:
                raise ScramError("the server asks for something else in the middle of SCRAM")
        except WrongSignature:
            return self._refuse(
                asyncpg.InterfaceError(
                    f"could not verify server signature for SCRAM authentication: {MECHANISM.lower()}"
                )
            )
        except TooManyIterations as exc:
            return self._refuse(asyncpg.InterfaceError(f"SCRAM authentication refused: {exc}"))
        except (ScramError, ValueError) as exc:
            return self._malformed(exc)
        del self._buffer[:end]
        return None

    def _prove(self, challenge: Challenge, password: Secret) -> None:
        assert self._claim.keys is not None
        keys = self._claim.keys(password, challenge)
        if isinstance(keys, Keys):
            self._answer(keys)
        else:
            self._deriving = keys
            keys.add_done_callback(self._derived)

    def _derived(self, future: asyncio.Future[Keys]) -> None:
        self._deriving = None
        if self._transport is None or self._transport.is_closing():
            return
        if future.cancelled() or future.exception() is not None:
            self._malformed("the keys could not be derived")
        else:
            self._answer(future.result())
            self._advance()

    def _answer(self, keys: Keys) -> None:
        assert self._exchange is not None
        self._send(self._exchange.final(keys))

    def _send(self, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"p" + (4 + len(body)).to_bytes(4, "big") + body)

    def _give_way(self) -> None:
        """Hand the transport to asyncpg's protocol, with what it has not seen."""
        assert self._transport is not None
        unseen = bytes(self._buffer)
        self._finish()
        self._transport.set_protocol(self.inner)
        if unseen:
            self.inner.data_received(unseen)

    def _malformed(self, why: object) -> None:
        self._refuse(asyncpg.InternalClientError(f"unexpected error while performing authentication: {why}"))

    def _refuse(self, failure: Exception) -> None:
        """End the login: whatever else the server sends is dropped, and asyncpg closes the transport."""
        self._claim.failure = failure
        self._finish()
        self.inner.data_received(_UNKNOWN_REQUEST)

    def _finish(self) -> None:
        self._over = True
        self._buffer.clear()
        self._exchange = None
        if self._deriving is not None:
            self._deriving.remove_done_callback(self._derived)
            self._deriving = None


def _md5(user: str, password: Secret, salt: bytes) -> bytes:
    inner = hashlib.md5((password.reveal() + user).encode()).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt[:4]).hexdigest().encode() + b"\0"
