"""The values everything else is about: a password, an account's credential, and the pair of accounts.

They stand at the bottom because all layers pass them on; they know nothing of databases, stores or time. A pair that
exists is valid: whatever is wrong with it is said when it is made, by the name of the key and never by its value.
"""

from __future__ import annotations

import enum
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

from .errors import InvalidSecret

_MASK = "**********"


class Secret:
    """A password that cannot be printed: ``repr``, ``str`` and ``format`` show a mask; :meth:`reveal` is the way out.

    Two secrets are equal when their contents are. A secret cannot be pickled, so that none reaches a cache or a queue.
    """

    __slots__ = ("_content",)

    def __init__(self, content: str) -> None:
        if not isinstance(content, str):
            raise InvalidSecret("a password must be text")
        self._content = content

    def reveal(self) -> str:
        """The password itself, for the one call that logs in with it."""
        return self._content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (text.encode("utf-8", "surrogatepass") for text in (self._content, other._content))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self._content))

    def __bool__(self) -> bool:
        return bool(self._content)

    def __repr__(self) -> str:
        return f"Secret({_MASK!r})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


class Parity(enum.StrEnum):
    """Which of the two accounts of a pair."""

    ODD = "odd"
    EVEN = "even"

    @property
    def other(self) -> Parity:
        return Parity.EVEN if self is Parity.ODD else Parity.ODD


@dataclass(frozen=True, slots=True)
class Credential:
    """The name and password of one account. Equality is by content: a changed password is another credential."""

    username: str
    password: Secret

    def __init__(self, username: str, password: str | Secret) -> None:
        # A traceback with captured locals shows what could not be made, too: both are set before they are looked at,
        # and the password is wrapped first, so that no frame holds the text.
        object.__setattr__(self, "username", username)
        object.__setattr__(self, "password", None)
        password = password if isinstance(password, Secret) else Secret(password)
        object.__setattr__(self, "password", password)
        for key, problem in (("username", _flaw(username)), ("password", _flaw(password.reveal()))):
            if problem:
                raise InvalidSecret(f"{key} {problem}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a secret says that its database is: defaults for a connection that names no server itself."""

    host: str | None = None
    port: int | None = None
    database: str | None = None


@dataclass(frozen=True, slots=True)
class CredentialPair:
    """The two accounts of a service, at one moment.

    ``odd`` or ``even`` may be None: a degraded pair, which works as long as its one account does. ``active`` says which
    account the first connection takes. ``pending`` is a newer password of one of the two that may not be in force
    yet. It announces that this account is about to change: connections use the other one while it works, and the
    pending password only after both others were refused. ``pending_since`` is when the store says that it was staged
    (aware), or None. ``refresh_in`` is in how many seconds the source expects something new, where it knows that.

    Raises :class:`InvalidSecret` for a pair that could not work.
    """

    odd: Credential | None
    even: Credential | None
    active: Parity = Parity.ODD
    pending: Credential | None = None
    endpoint: Endpoint | None = field(default=None, compare=False)
    pending_since: datetime | None = field(default=None, compare=False)
    refresh_in: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for key in ("odd", "even", "pending"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, Credential):
                raise InvalidSecret(f"{key} must be a Credential or None, not {type(value).__name__}")
        if self.odd is None and self.even is None:
            raise InvalidSecret("a pair needs at least one account: both odd and even are missing")
        if self.odd and self.even and self.odd.username == self.even.username:
            raise InvalidSecret("odd_username and even_username must differ: the pair needs two accounts")
        try:
            active = Parity(self.active)
        except ValueError:
            raise InvalidSecret('active must be "odd" or "even"') from None
        object.__setattr__(self, "active", active if self[active] else active.other)
        if self.pending and self.pending_parity is None:
            raise InvalidSecret("pending_username must be the username of odd or of even")
        if self.pending_since is not None and self.pending_since.utcoffset() is None:
            raise InvalidSecret("pending_since must be an aware datetime")

    def __getitem__(self, parity: Parity) -> Credential | None:
        return self.odd if Parity(parity) is Parity.ODD else self.even

    @property
    def pending_parity(self) -> Parity | None:
        """Whose newer password ``pending`` is: by username, or the account that a degraded pair lacks."""
        if self.pending is None:
            return None
        for parity in Parity:
            account = self[parity]
            if account and account.username == self.pending.username:
                return parity
        return self.missing

    @property
    def missing(self) -> Parity | None:
        """The account that a degraded pair lacks, or None for a whole pair."""
        return next((parity for parity in Parity if self[parity] is None), None)

    def credentials(self) -> Iterator[Credential]:
        """All credentials of the pair: odd, even, pending, as far as it has them."""
        return (c for c in (self.odd, self.even, self.pending) if c is not None)

    @classmethod
    def from_secret(cls, secret: str | bytes | Mapping[str, Any]) -> CredentialPair:
        """Read a pair from gopqr's five keys, as JSON text or a mapping; other keys are ignored.

        The keys are ``odd_username``, ``odd_password``, ``even_username``, ``even_password`` and ``active_credential``
        (``"odd"`` or ``"even"``). An account of which both keys are absent makes a degraded pair.
        ``pending_username``/``pending_password``/``pending_staged_at`` and ``host``/``port``/``dbname`` are read where
        present.

        Raises :class:`InvalidSecret`, which names the key at fault and never shows a value.
        """
        try:
            return cls._from_entries(parse_secret(secret))
        except InvalidSecret as exc:
            problem = str(exc)
        del secret  # raised from here, with none of the frames that held the text
        raise InvalidSecret(problem)

    @classmethod
    def _from_entries(cls, entries: Mapping[str, Any]) -> CredentialPair:
        accounts: Any = {prefix: _credential(entries, prefix) for prefix in ("odd", "even", "pending")}
        if "active_credential" in entries:
            active = entries["active_credential"]
            if active not in ("odd", "even"):
                raise InvalidSecret('active_credential must be "odd" or "even"')
        elif accounts["odd"] and accounts["even"]:
            raise InvalidSecret("active_credential is missing")
        else:
            active = "odd"
        since = parse_time(entries.get("pending_staged_at")) if accounts["pending"] else None
        return cls(active=Parity(active), endpoint=_endpoint(entries), pending_since=since, **accounts)


def _flaw(text: object) -> str | None:
    """What makes a text unusable as a name or password, in words that do not show it."""
    if not isinstance(text, str):
        return f"must be text, not {type(text).__name__}"
    if not text:
        return "must not be empty"
    if "\0" in text:
        return "must not contain a zero byte"  # which ends a text in Postgres' protocol
    return None if text.isascii() or _is_unicode(text) else "is not valid Unicode text"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_secret(secret: str | bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    """The key-value object that a secret is, or :class:`InvalidSecret`."""
    if isinstance(secret, Mapping):
        return secret
    if not isinstance(secret, str | bytes | bytearray):
        raise InvalidSecret(f"a secret must be JSON text or a mapping, not {type(secret).__name__}")
    try:
        entries = json.loads(secret)
    except (ValueError, RecursionError):
        # The parser's own message and its `doc` hold the text, so nothing of it is passed on.
        entries = None
        problem = "the secret is not valid JSON"
    else:
        problem = "the secret must be a JSON object of keys and values"
    if not isinstance(entries, dict):
        raise InvalidSecret(problem)
    return entries


def parse_time(value: object) -> datetime | None:
    """An ISO 8601 time with an offset, as UTC; None for anything else, which counts as not known."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
        return time.astimezone(UTC) if time is not None and time.utcoffset() is not None else None
    except (ValueError, OverflowError):
        return None


def _credential(entries: Mapping[str, Any], prefix: str) -> Credential | None:
    keys = f"{prefix}_username", f"{prefix}_password"
    username, password = (entries.get(key) for key in keys)
    if username is password is None:
        return None
    for key, value in zip(keys, (username, password), strict=True):
        if value is None:
            raise InvalidSecret(f"{key} is missing")
        if not isinstance(value, str | Secret):
            raise InvalidSecret(f"{key} must be text, not {type(value).__name__}")
    try:
        return Credential(cast(str, username), cast(str, password))
    except InvalidSecret as exc:
        raise InvalidSecret(f"{prefix}_{exc}") from None


def _endpoint(entries: Mapping[str, Any]) -> Endpoint | None:
    host, port, database = (entries.get(key) for key in ("host", "port", "dbname"))
    if host is port is database is None:
        return None
    for key, value in (("host", host), ("dbname", database)):
        if value is not None and not isinstance(value, str):
            raise InvalidSecret(f"{key} must be text, not {type(value).__name__}")
    if port is not None:
        try:
            number = int(port)
        except (TypeError, ValueError):
            number = 0
        if isinstance(port, bool | float) or not 0 < number < 65536:
            raise InvalidSecret("port must be a number from 1 to 65535")
        port = number
    return Endpoint(host or None, port, database or None)
