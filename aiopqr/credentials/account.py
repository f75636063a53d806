"""An account's credential, its parity, and the place of its database."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

from .._flaws import WHITE_SPACE, flaw, flaw_of_ends, flaw_of_name
from ..errors import InvalidSecret
from .secret import Secret


class Parity(enum.StrEnum):
    """One of the two accounts of a pair: odd or even."""

    ODD = "odd"
    EVEN = "even"

    @property
    def other(self) -> Parity:
        """The other account: even for odd, and odd for even."""
        return Parity.EVEN if self is Parity.ODD else Parity.ODD


@dataclass(frozen=True, slots=True)
class Credential:
    """The name and password of one account.

    ``expires_at`` is when the password stops working, as an aware datetime, or None if it does not expire. Set
    ``ends_sessions`` if open connections stop working then as well, as with a lease whose role is dropped. Pools then
    replace connections before that time.

    Two credentials are equal if their names and passwords are; the expiry does not matter. Raises
    :class:`InvalidSecret` for values that cannot work.
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
        # A traceback that shows locals may also show a half-made credential. So all fields are set before any of them
        # is checked, and the password is wrapped first, so that no frame holds its text.
        object.__setattr__(self, "password", None)
        object.__setattr__(self, "username", username)
        object.__setattr__(self, "expires_at", expires_at)
        object.__setattr__(self, "ends_sessions", bool(ends_sessions))
        password = password if isinstance(password, Secret) else Secret(password)
        object.__setattr__(self, "password", password)
        if problem := flaw(username) or flaw_of_name(username):
            raise InvalidSecret(f"username {problem}")
        if problem := flaw(password.reveal()) or flaw_of_ends(password.reveal(), "\r\n"):
            raise InvalidSecret(f"password {problem}")
        if expires_at is not None and not (isinstance(expires_at, datetime) and expires_at.utcoffset() is not None):
            raise InvalidSecret("expires_at must be an aware datetime, or None")

    @property
    def is_padded(self) -> bool:
        """Whether the password begins or ends with white space, which is rarely intended."""
        return self.password.reveal().strip(WHITE_SPACE) != self.password.reveal()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The location of a database according to a secret. Connections use it as a default if they do not name one."""

    host: str | None = None
    port: int | None = None
    database: str | None = None
