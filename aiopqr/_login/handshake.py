"""A protocol that answers the server's authentication requests instead of asyncpg's, until the login is over.

It sits between the transport and asyncpg's protocol, from the server's first byte until the server is ready for queries
or ends the login. Only this protocol knows the password. It consults `trust` before it answers anything, and rejects
messages that are longer than an honest server's. asyncpg's protocol gets everything else: notices, settings, errors,
and requests that only asyncpg can answer (GSSAPI).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg

from .._reading import read_in_pieces
from .._trust import SCRAM, Channel, Method, Trust
from ..credentials import Secret
from ..errors import UntrustedServer
from . import proved
from .certificate import end_point
from .scram import Challenge, Exchange, Keys, ScramError, TooManyIterations, WrongSignature

logger = logging.getLogger("aiopqr")

_HEADER = struct.Struct("!cI")  # a message's kind, and its length without the kind
_LONGEST = 65536  # maximum bytes of a message during login; libpq allows 2,000 for a request and 30,000 for an error
_OK, _CLEARTEXT, _MD5, _GSS, _SSPI, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 7, 9, 10, 11, 12
_METHODS = {
    _OK: Method.NONE,
    _CLEARTEXT: Method.PASSWORD,
    _MD5: Method.MD5,
    _GSS: Method.GSS,
    _SSPI: Method.SSPI,
    _SASL: Method.SCRAM,
}
# No such request exists, so asyncpg ends the login with an InterfaceError. login() then raises the real error instead.
_UNKNOWN_REQUEST = b"R\x00\x00\x00\x08\x7f\xff\xff\xff"


@dataclass(slots=True)
class Claim:
    """Who logs in, what the server may ask for, and the outcome. Emptied when the login is over."""

    user: str
    password: Secret | None
    keys: Callable[[Secret, Challenge], Keys | asyncio.Future[Keys]] | None
    trust: Trust = field(default_factory=Trust)
    began_tls: bool = False  # the login has begun TLS
    handled: bool = False  # a handshake was in front of asyncpg's protocol
    answered: bool = False  # the server has sent something
    asked: tuple[str, Channel] | None = None  # what the server asked for, and how it was asked
    unverified: bool = False  # the password was sent as plain text to a server whose identity was not verified
    failure: Exception | None = None

    def drop(self) -> None:
        """Forget the password, and everything with a reference to it."""
        self.password = self.keys = self.failure = None


class Handshake(asyncio.Protocol):
    """Answers the server instead of asyncpg's protocol, `inner`, and hands over to it after the login."""

    def __init__(self, claim: Claim, inner: Any, transport: asyncio.Transport | None = None) -> None:
        claim.handled = True
        self.inner = inner
        self._claim = claim
        self._transport = transport
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._sent: Method | None = None  # an answer was sent, which the server has yet to accept or refuse
        self._deriving: asyncio.Future[Keys] | None = None
        self._accepted = False
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        read_in_pieces(transport)
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._claim.answered = True
        if self._over:
            return
        self._buffer += data
        if self._accepted:
            self._pass_reports(0)
        else:
            self._advance()

    def _advance(self) -> None:
        """Handle complete messages, until one accepts or ends the login, or has to be answered by asyncpg."""
        buffer = self._buffer
        while not self._over and not self._accepted and len(buffer) >= 5:
            kind, length = _HEADER.unpack_from(buffer)
            if self._deriving is not None and kind != b"E":
                break
            if not 4 <= length < _LONGEST:
                return self._impossible(kind == b"E")
            if len(buffer) <= length:
                break
            if kind == b"E":
                return self._give_way()
            if kind in b"Nv":
                self._pass_on(1 + length)
            elif kind == b"R" and length >= 8:
                self._requested(bytes(buffer[: 1 + length]))
            else:
                return self._malformed("a message that does not belong to a login")
        if not self._accepted and len(buffer) > _LONGEST:
            self._malformed("too much data")
        return None

    def _pass_reports(self, at: int) -> None:
        """The server has accepted the login. Pass on what it reports, until it is ready for queries.

        Everything before ``at`` goes to asyncpg's protocol too, in one piece.
        """
        buffer = self._buffer
        size, header = len(buffer), _HEADER.unpack_from
        while size >= at + 5:
            kind, length = header(buffer, at)
            if not 4 <= length < _LONGEST:
                return self._impossible(kind == b"E")
            end = at + 1 + length
            if size < end:
                break
            if kind in b"ZE":
                return self._give_way()
            if kind == b"R":
                return self._malformed("a message that does not belong to a login")
            at = end
        return self._pass_on(at)

    def _requested(self, message: bytes) -> None:
        """Answer an authentication request, or leave it to asyncpg."""
        request, body = int.from_bytes(message[5:9], "big"), message[9:]
        password, exchange = self._claim.password, self._exchange
        if password is None:  # the login was abandoned, and asyncpg will close the transport
            return self._finish()
        try:
            if exchange is None and self._sent is None:
                if not self._begin(request, body, password):
                    return self._give_way()
            elif request == _OK:
                if exchange is not None and not exchange.verified:
                    raise WrongSignature
                if exchange is not None:
                    proved.remember(password)
            elif exchange is not None and request == _SASL_CONTINUE:
                self._prove(exchange.challenged(body), password)
            elif exchange is not None and request == _SASL_FINAL:
                exchange.verify(body)
            else:
                raise ScramError("the server sent another request in the middle of an exchange")
        except WrongSignature:
            return self._refuse(
                asyncpg.InterfaceError(f"could not verify server signature for SCRAM authentication: {SCRAM.lower()}")
            )
        except TooManyIterations as exc:
            return self._refuse(asyncpg.InterfaceError(f"SCRAM authentication refused: {exc}"))
        except _Distrust as exc:
            return self._refuse(UntrustedServer(f"the server got no password of {self._claim.user!r}: {exc}"))
        except (ScramError, ValueError) as exc:
            return self._malformed(exc)
        if request == _OK:
            self._accepted = True
            return self._pass_reports(len(message))
        del self._buffer[: len(message)]
        return None

    def _begin(self, request: int, body: bytes, password: Secret) -> bool:
        """Answer the server's first request. Returns False if only asyncpg can answer or refuse it."""
        trust, channel, method = self._claim.trust, self._channel(), _METHODS.get(request)
        if method is None:
            return False
        self._claim.asked = method, channel
        if objection := trust.objection(method, channel):
            raise _Distrust(objection)
        if method is Method.PASSWORD:
            if proved.is_known(password):
                raise _Distrust(
                    "it asked for the password as plain text, although a server has proved by SCRAM that it knows the "
                    "password"
                )
            self._claim.unverified = channel is Channel.TLS and not self._verified()
            self._send(password.reveal().encode() + b"\0")
        elif method is Method.MD5:
            self._send(_md5(self._claim.user, password, body))
        elif method is Method.SCRAM:
            return self._begin_scram({name.decode("ascii", "replace") for name in body.split(b"\0") if name}, channel)
        elif method in (Method.GSS, Method.SSPI):
            return False
        self._sent = method
        return True

    def _begin_scram(self, offered: set[str], channel: Channel) -> bool:
        trust, is_tls = self._claim.trust, channel is Channel.TLS
        if not any(name.startswith(SCRAM) for name in offered):
            return False
        binding = self._certificate_hash() if is_tls else None
        try:
            mechanism, flag = trust.mechanism(offered, channel, binding, is_tls and self._verified())
        except ValueError as exc:
            raise _Distrust(str(exc)) from None
        self._claim.asked = mechanism.lower(), channel
        self._exchange = Exchange(flag=flag, binding=binding or b"")
        first = self._exchange.first
        self._send(mechanism.encode() + b"\0" + len(first).to_bytes(4, "big") + first)
        return True

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

    def _channel(self) -> Channel:
        assert self._transport is not None
        if self._tls() is not None:
            return Channel.TLS
        is_path = isinstance(self._transport.get_extra_info("peername"), str | bytes)
        return Channel.UNIX if is_path else Channel.TCP

    def _tls(self) -> ssl.SSLObject | None:
        assert self._transport is not None
        return cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))

    def _verified(self) -> bool:
        """Whether TLS has verified that the certificate belongs to the host."""
        tls = self._tls()
        return tls is not None and tls.context.check_hostname and tls.context.verify_mode is ssl.CERT_REQUIRED

    def _certificate_hash(self) -> bytes | None:
        tls = self._tls()
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        return end_point(certificate) if certificate else None

    def _pass_on(self, size: int) -> None:
        """Pass the next ``size`` bytes to asyncpg's protocol."""
        if size:
            seen = bytes(self._buffer[:size])
            del self._buffer[:size]
            self.inner.data_received(seen)

    def _give_way(self) -> None:
        """Hand the transport over to asyncpg's protocol, with the bytes that it has not received yet."""
        assert self._transport is not None
        unseen = bytes(self._buffer)
        self._finish()
        self._transport.set_protocol(self.inner)
        self.inner.data_received(unseen)

    def _impossible(self, is_error: bool) -> None:
        if not is_error:
            return self._malformed("a message of impossible length")
        # If the server cannot start a process for the connection, it sends an error in an ancient format without a
        # length (libpq handles that too). A hostile server might announce gigabytes.
        return self._refuse(
            asyncpg.ConnectionDoesNotExistError("the server ended the login with an error that cannot be read")
        )

    def _malformed(self, why: object) -> None:
        self._refuse(asyncpg.InternalClientError(f"unexpected error while performing authentication: {why}"))

    def _refuse(self, failure: Exception) -> None:
        """End the login. Further data from the server is dropped, and asyncpg closes the transport."""
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


class _Distrust(Exception):
    """Why the server gets no answer."""


def _md5(user: str, password: Secret, salt: bytes) -> bytes:
    inner = hashlib.md5((password.reveal() + user).encode()).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt[:4]).hexdigest().encode() + b"\0"
