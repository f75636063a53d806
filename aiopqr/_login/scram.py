"""SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL implements it.

It contains the derivation of keys, the verifier that a server stores, and the client's half of an exchange, with or
without channel binding (SCRAM-SHA-256-PLUS). All of it is pure: bytes in, bytes out. Logins use it, and so do
rotations: they compute the verifier here, so that no server, proxy or statement log ever sees a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass, field

MECHANISM = "SCRAM-SHA-256"
DEFAULT_ITERATIONS = 4096  # PostgreSQL's scram_iterations

#: The most iterations that a server may ask for. A million takes 0.3 s of one core, and is more than anybody
#: recommends. Without a limit, a hostile server could keep a client computing for hours. There is no lower limit, since
#: PostgreSQL allows `scram_iterations = 1`, and libpq and asyncpg both log in with it.
MAX_ITERATIONS = 1_000_000

_SERVER_FIRST = re.compile(
    rb"r=(?P<nonce>[\x21-\x2b\x2d-\x7e]+),s=(?P<salt>[A-Za-z0-9+/=]+),i=(?P<iterations>[1-9][0-9]{0,9})"
    rb"(?:,[A-Za-z]=[^,\x00]*)*"  # extensions, which RFC 5802 tells a client to ignore
)
_SERVER_FINAL = re.compile(rb"v=(?P<signature>[A-Za-z0-9+/=]+)(?:,[A-Za-z]=[^,\x00]*)*")

_PROHIBITED = (
    stringprep.in_table_a1,  # PostgreSQL counts unassigned code points as prohibited
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class ScramError(Exception):
    """The server's message is not valid SCRAM, or not an answer to ours."""


class TooManyIterations(ScramError):
    """The server asks for more iterations than any honest server would."""


class WrongSignature(ScramError):
    """The server does not know the password, so it is not the server that it claims to be."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys derived from a password, a salt and an iteration count. Keep them as secret as the password.

    The HMACs are made once, and copied for each login, which takes a third less time than making new ones.
    """

    client: bytes = field(repr=False)
    stored: bytes = field(repr=False)
    server: bytes = field(repr=False)
    stored_hmac: hmac.HMAC = field(init=False, repr=False, compare=False)
    server_hmac: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored_hmac", hmac.new(self.stored, digestmod="sha256"))
        object.__setattr__(self, "server_hmac", hmac.new(self.server, digestmod="sha256"))


@dataclass(frozen=True, slots=True)
class Challenge:
    """The salt and iteration count that the server sends for deriving the keys."""

    salt: bytes
    iterations: int


def saslprep(text: str) -> str:
    """Normalise a password before hashing, exactly as libpq's `pg_saslprep` does.

    If SASLprep (RFC 4013) prohibits the text, it is returned unchanged, as in libpq.
    """
    if text.isascii():
        return text
    # Map spaces first: U+200B is both a space and "mapped to nothing", and libpq makes it a space.
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in text
        if stringprep.in_table_c12(char) or not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.normalize("NFKC", mapped)
    if not prepared or any(prohibited(char) for char in prepared for prohibited in _PROHIBITED):
        return text
    if any(stringprep.in_table_d1(char) for char in prepared) and (
        any(stringprep.in_table_d2(char) for char in prepared)
        or not stringprep.in_table_d1(prepared[0])
        or not stringprep.in_table_d1(prepared[-1])
    ):
        return text
    return prepared


def derive(password: str, salt: bytes, iterations: int) -> Keys:
    """Derive the keys of a password. This takes about 0.3 µs per iteration, and releases the GIL.

    Raises ValueError, which does not show the password, if it is not valid Unicode.
    """
    try:
        secret = saslprep(password).encode()
    except UnicodeEncodeError:
        raise ValueError("the password is not valid Unicode text") from None
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    return Keys(
        client=client,
        stored=hashlib.sha256(client).digest(),
        server=hmac.digest(salted, b"Server Key", "sha256"),
    )


def verifier(password: str, *, iterations: int = DEFAULT_ITERATIONS, salt: bytes | None = None) -> str:
    """The verifier that PostgreSQL stores for a password, ready for `ALTER ROLE ... PASSWORD '...'`.

    `salt` is 16 random bytes by default. The text contains no quotes or backslashes. It is not the password, but with
    it an attacker can guess the password offline, so treat it as a secret.
    """
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be 1 to {MAX_ITERATIONS}, not {iterations}")
    salt = secrets.token_bytes(16) if salt is None else salt
    keys = derive(password, salt, iterations)
    return f"{MECHANISM}${iterations}:{_b64(salt)}${_b64(keys.stored)}:{_b64(keys.server)}"


class Exchange:
    """The client's half of an exchange. Use in this order: `first`, `challenged()`, `final()`, `verify()`.

    ``flag`` tells the server about channel binding: "n" if this side does not bind, "y" if it would but the server
    does not offer it, "p" if it binds to ``binding``, the hash of the server's certificate. Each step may raise
    ScramError, which says what was wrong without quoting what was sent.
    """

    __slots__ = ("_auth_message", "_bare", "_bound", "_header", "_keys", "_nonce", "_server_first", "_server_nonce",
                 "verified")  # fmt: skip

    def __init__(self, nonce: str | None = None, *, flag: str = "n", binding: bytes = b"") -> None:
        self._nonce = (nonce or _b64(secrets.token_bytes(18))).encode("ascii")
        # PostgreSQL takes the username from the startup message and ignores this one, so libpq leaves it empty too.
        self._bare = b"n=,r=" + self._nonce
        self._header = b"p=tls-server-end-point,," if flag == "p" else flag.encode() + b",,"
        self._bound = base64.b64encode(self._header + (binding if flag == "p" else b""))
        self._server_first = b""
        self._server_nonce = b""
        self._auth_message = b""
        self._keys: Keys | None = None
        self.verified = False

    @property
    def first(self) -> bytes:
        """The client's first message."""
        return self._header + self._bare

    def challenged(self, server_first: bytes) -> Challenge:
        """Check the server's first message, and return the challenge from which to derive the keys."""
        if self._server_first:
            raise ScramError("the server sent its first message twice")
        match = _SERVER_FIRST.fullmatch(server_first)
        if match is None:
            raise ScramError("the server's first message is malformed")
        nonce, encoded, count = match.groups()
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ScramError("the server's nonce does not continue ours")
        salt, iterations = _unb64(encoded, "salt"), int(count)
        if iterations > MAX_ITERATIONS:
            raise TooManyIterations(
                f"the server asks for {iterations} iterations; at most {MAX_ITERATIONS} are computed"
            )
        self._server_first, self._server_nonce = server_first, nonce
        return Challenge(salt, iterations)

    def final(self, keys: Keys) -> bytes:
        """The client's final message, with the proof that it knows the password."""
        if not self._server_first or self._keys is not None:
            raise ScramError("the proof was requested out of order")
        self._keys = keys
        without_proof = b"c=" + self._bound + b",r=" + self._server_nonce
        self._auth_message = b",".join((self._bare, self._server_first, without_proof))
        signature = signature_of(keys.stored_hmac, self._auth_message)
        proof = (int.from_bytes(keys.client, "big") ^ int.from_bytes(signature, "big")).to_bytes(len(signature), "big")
        return without_proof + b",p=" + base64.b64encode(proof)

    def verify(self, server_final: bytes) -> None:
        """Check the server's proof that it knows the password too. Raises WrongSignature if it does not."""
        if self._keys is None or self.verified:
            raise ScramError("the server sent its final message out of order")
        match = _SERVER_FINAL.fullmatch(server_final)
        if match is None:
            raise ScramError("the server's final message is malformed")
        expected = signature_of(self._keys.server_hmac, self._auth_message)
        if not hmac.compare_digest(_unb64(match["signature"], "signature"), expected):
            raise WrongSignature("the server's signature is wrong")
        self.verified = True


def signature_of(prepared: hmac.HMAC, message: bytes) -> bytes:
    """The signature of a message, with an HMAC that has its key."""
    mac = prepared.copy()
    mac.update(message)
    return mac.digest()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: bytes, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ScramError(f"the server's {what} is not base64") from None
