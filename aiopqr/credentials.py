"""A password, an account's credential, and the accounts that a service may use at one moment.

All layers pass these values on. They know nothing of databases, stores or clocks. Whatever is wrong with one is
reported when it is made, by the name of the key and never by its value; so a pair that exists is valid.
"""

from __future__ import annotations

import enum
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from ._flaws import WHITE_SPACE, edge, flaw, flaw_of_name
from .errors import InvalidSecret

_MASK = "**********"


class Secret:
    """A password that cannot be printed: ``repr``, ``str`` and ``format`` show a mask; :meth:`reveal` returns the text.

    Two secrets are equal when their contents are. A secret cannot be pickled, so that none ends up in a cache or a
    queue, and it has no attribute that holds its text, so that serializers and inspectors find none.
    """

    __slots__ = ("_reveal",)
    _reveal: Callable[[], str]

    def __init__(self, content: str) -> None:
        if not isinstance(content, str):
            raise InvalidSecret("a password must be text")
        self._reveal = lambda: content

    def reveal(self) -> str:
        """The password itself, for the one call that logs in with it."""
        return self._reveal()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (text.encode("utf-8", "surrogatepass") for text in (self.reveal(), other.reveal()))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __repr__(self) -> str:
        return f"Secret({_MASK!r})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to show")

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
        """Even for odd, and odd for even."""
        return Parity.EVEN if self is Parity.ODD else Parity.ODD


@dataclass(frozen=True, slots=True)
class Credential:
    """The name and password of one account.

    ``expires_at`` is the time from which the password no longer logs in, as an aware datetime; None if it does not
    expire. With ``ends_sessions``, connections do not outlive the password either, as with a lease whose role is
    dropped: pools then replace them before that time.

    Two credentials are equal when name and password are: a changed password is another credential, a later expiry is
    not. Raises :class:`InvalidSecret` for what could not work.
    """

    username: str
    password: Secret
    expires_at: datetime | None = field(default=None, compare=False)
    ends_sessions: bool = field(default=False, compare=False)

    def __init__(
        self,
        username: str,
        password: str | Secret,
        expires_at: datetime | None = None,
        ends_sessions: bool = False,
    ) -> None:
        # A traceback with captured locals would also show a half-made credential. So all fields are set before any is
        # checked, and the password is wrapped first, so that no frame holds its text.
        object.__setattr__(self, "password", None)
        object.__setattr__(self, "username", username)
        object.__setattr__(self, "expires_at", expires_at)
        object.__setattr__(self, "ends_sessions", bool(ends_sessions))
        password = password if isinstance(password, Secret) else Secret(password)
        object.__setattr__(self, "password", password)
        if problem := flaw(username) or flaw_of_name(username):
            raise InvalidSecret(f"username {problem}")
        if problem := flaw(password.reveal()) or edge(password.reveal(), "\r\n"):
            raise InvalidSecret(f"password {problem}")
        if expires_at is not None and not (isinstance(expires_at, datetime) and expires_at.utcoffset() is not None):
            raise InvalidSecret("expires_at must be an aware datetime, or None")

    @property
    def is_padded(self) -> bool:
        """Whether the password begins or ends with white space, which is rarely meant."""
        return self.password.reveal().strip(WHITE_SPACE) != self.password.reveal()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a secret says that its database is: defaults for a connection that names no server itself."""

    host: str | None = None
    port: int | None = None
    database: str | None = None


@dataclass(frozen=True, slots=True)
class CredentialPair:
    """The two accounts of a service at one moment, or the one account that it has so far (:meth:`single`).

    ``odd`` or ``even`` may be None: a degraded pair, which works as long as its one account does. ``active`` says which
    account the first connection takes. ``pending`` is a newer password of one of the two that may not be in force
    yet. It announces that this account is about to change: connections use the other one while it works, and the
    pending password only after both others were refused. ``pending_since`` is when the store says that it was staged
    (aware), or None. ``is_single`` says that one account is all that the store is meant to have. ``refresh_in`` is in
    how many seconds the source expects something new, where it knows that: the refresher then fetches.
    ``last_resort`` is an account that the store no longer names: it is used only while all others are refused.

    Raises :class:`InvalidSecret` for a pair that could not work.
    """

    odd: Credential | None
    even: Credential | None
    active: Parity = Parity.ODD
    pending: Credential | None = None
    endpoint: Endpoint | None = field(default=None, compare=False)
    pending_since: datetime | None = field(default=None, compare=False)
    is_single: bool = False
    refresh_in: float | None = field(default=None, compare=False)
    last_resort: Credential | None = None

    if TYPE_CHECKING:  # what __post_init__ accepts: "odd" and "even" are as good as Parity.ODD and Parity.EVEN

        def __init__(
            self,
            odd: Credential | None,
            even: Credential | None,
            active: Parity | Literal["odd", "even"] = Parity.ODD,
            pending: Credential | None = None,
            endpoint: Endpoint | None = None,
            pending_since: datetime | None = None,
            is_single: bool = False,
            refresh_in: float | None = None,
        ) -> None: ...

    @classmethod
    def single(cls, credential: Credential, *, endpoint: Endpoint | None = None) -> CredentialPair:
        """One account, on purpose. While its password is refused, connects wait for a newer one."""
        return cls(credential, None, endpoint=endpoint, is_single=True)

    def __post_init__(self) -> None:
        for key in ("odd", "even", "pending", "last_resort"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, Credential):
                raise InvalidSecret(f"{key} must be a Credential or None, not {type(value).__name__}")
        if self.odd is None and self.even is None:
            raise InvalidSecret("a pair needs at least one account: both odd and even are missing")
        if self.is_single and self.odd and self.even:
            raise InvalidSecret("a single account is one: either odd or even must be None")
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
        """Whose newer password ``pending`` is: by username, or the account that the pair does not have."""
        if self.pending is None:
            return None
        for parity in Parity:
            account = self[parity]
            if account and account.username == self.pending.username:
                return parity
        return self.empty

    @property
    def missing(self) -> Parity | None:
        """The account that a degraded pair lacks; None for a whole pair, and for a single account."""
        return None if self.is_single else self.empty

    @property
    def empty(self) -> Parity | None:
        """The account that the pair does not have, whether or not it is meant to."""
        return next((parity for parity in Parity if self[parity] is None), None)

    def credentials(self) -> Iterator[Credential]:
        """All credentials of the pair: odd, even, pending and last resort, as far as it has them."""
        return (c for c in (self.odd, self.even, self.pending, self.last_resort) if c is not None)

    @classmethod
    def from_secret(cls, secret: str | bytes | Mapping[str, Any]) -> CredentialPair:
        """Read the accounts from JSON text or a mapping. Keys that are not named here are ignored.

        A pair has gopqr's five keys: ``odd_username``, ``odd_password``, ``even_username``, ``even_password`` and
        ``active_credential`` (``"odd"`` or ``"even"``). An account of which both keys are absent makes a degraded pair.
        A single account has ``username`` (or ``user``) and ``password``; where keys of a pair are present as well,
        the pair counts. ``pending_username``/``pending_password``/``pending_staged_at`` and ``host``/``port``/
        ``dbname`` are read where present.

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
        accounts: dict[str, Any] = {"pending": _credential(entries, "pending_username", "pending_password")}
        if is_pair(entries):
            accounts |= {name: _credential(entries, f"{name}_username", f"{name}_password") for name in Parity}
            accounts["active"] = _active(entries, is_whole=bool(accounts["odd"] and accounts["even"]))
        else:
            # Where both keys of the name are present, they say the same (CloudNativePG).
            name = "user" if "user" in entries and "username" not in entries else "username"
            accounts |= {"odd": _credential(entries, name, "password"), "even": None, "is_single": True}
            if accounts["odd"] is None:
                raise InvalidSecret(f"the secret has no credentials: expected {_EXPECTED}; found {_found(entries)}")
        since = parse_time(entries.get("pending_staged_at")) if accounts["pending"] else None
        return cls(endpoint=_endpoint(entries), pending_since=since, **accounts)


_PAIR_KEYS = tuple(f"{account}_{part}" for account in Parity for part in ("username", "password"))
_EXPECTED = f"{', '.join(_PAIR_KEYS)} and active_credential, or username and password"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
_KEYS_SHOWN = 12

# The keys that :meth:`CredentialPair.from_secret` reads.
SECRET_KEYS = (
    *_PAIR_KEYS, "active_credential", "pending_username", "pending_password", "pending_staged_at",
    "username", "user", "password", "host", "port", "dbname",
)  # fmt: skip


def is_pair(entries: Mapping[str, Any]) -> bool:
    """Whether a secret has keys of a pair, not only those of a single account."""
    return any(entries.get(key) is not None for key in _PAIR_KEYS)


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


def _credential(entries: Mapping[str, Any], username_key: str, password_key: str) -> Credential | None:
    keys = {"username": username_key, "password": password_key}
    username, password = (entries.get(key) for key in keys.values())
    if username is password is None:
        return None
    for key, value in ((username_key, username), (password_key, password)):
        if value is None:
            raise InvalidSecret(f"{key} is missing; found {_found(entries)}")
        if not isinstance(value, str | Secret):
            raise InvalidSecret(f"{key} must be text, not {type(value).__name__}")
    try:
        return Credential(cast(str, username), cast(str, password))
    except InvalidSecret as exc:
        part, problem = str(exc).split(" ", 1)
    raise InvalidSecret(f"{keys[part]} {problem}")


def _active(entries: Mapping[str, Any], *, is_whole: bool) -> Parity:
    active = entries.get("active_credential", None if is_whole else "odd")
    if active in ("odd", "even"):
        return Parity(active)
    if "active_credential" not in entries:
        raise InvalidSecret(f"active_credential is missing; found {_found(entries)}")
    around = ", without white space around it" if isinstance(active, str) and active.strip() in tuple(Parity) else ""
    raise InvalidSecret(f'active_credential must be "odd" or "even"{around}')


def _found(entries: Mapping[str, Any]) -> str:
    """The keys of a secret, for an error, as far as they look like keys."""
    keys = [key for key in entries if isinstance(key, str) and _KEY.fullmatch(key)][:_KEYS_SHOWN]
    others = len(entries) - len(keys)
    shown = [*keys, *([f"{others} more" if keys else f"{others} others"] if others else [])]
    return ", ".join(shown) or "no keys"


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
    # CloudNativePG writes "*" into the secret of a superuser, who may use any database.
    return Endpoint(host or None, port, None if database == "*" else database or None)
