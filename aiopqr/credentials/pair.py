"""The accounts that a service may use at one moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidSecret
from .account import Credential, Endpoint, Parity
from .schema import accounts_of, parse_secret


@dataclass(frozen=True, slots=True)
class CredentialPair:
    """The two accounts of a service at one moment, or its only account (:meth:`single`).

    - ``odd``, ``even``: The accounts. One of them may be None. Such a degraded pair works as long as its account does.
    - ``active``: The account that the first connection uses.
    - ``pending``: A new password of one of the two accounts, which the database may not accept yet. It announces that
      this account is about to change, so connections use the other one while that works. The pending password itself is
      tried only after both others were refused. ``pending_since`` is when it was staged, as an aware datetime, or None.
    - ``is_single``: The store is meant to hold a single account, so the pair is not degraded.
    - ``refresh_in``: The number of seconds after which the source expects a change and should be fetched again, or
      None.
    - ``last_resort``: An account that the store no longer returns. It is used only while all others are refused. The
      refresher sets it; a source does not pass it.

    Raises :class:`InvalidSecret` for values that cannot work.
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

    # __post_init__ also accepts "odd" and "even" for Parity.ODD and Parity.EVEN. `last_resort` is not for users: the
    # refresher sets it with dataclasses.replace().
    if TYPE_CHECKING:

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
        """Make a pair that deliberately has one account. If its password is refused, connects wait for a newer one."""
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
        since, within = self.pending_since, self.refresh_in
        if since is not None and not (isinstance(since, datetime) and since.utcoffset() is not None):
            raise InvalidSecret("pending_since must be an aware datetime, or None")
        if within is not None and (not isinstance(within, int | float) or math.isnan(within)):
            raise InvalidSecret("refresh_in must be a number of seconds, or None")

    def __getitem__(self, parity: Parity | Literal["odd", "even"]) -> Credential | None:
        if parity is not Parity.ODD and parity is not Parity.EVEN:  # Parity() is slow
            parity = Parity(parity)
        return self.odd if parity is Parity.ODD else self.even

    @property
    def pending_parity(self) -> Parity | None:
        """The account to which ``pending`` belongs: the one with that username, or else the missing one."""
        if self.pending is None:
            return None
        for parity in Parity:
            account = self[parity]
            if account and account.username == self.pending.username:
                return parity
        return self.empty

    @property
    def missing(self) -> Parity | None:
        """The account that a degraded pair lacks; None for a complete pair or a single account."""
        return None if self.is_single else self.empty

    @property
    def empty(self) -> Parity | None:
        """The account that is None, whether or not it should be there; None if both are there."""
        return next((parity for parity in Parity if self[parity] is None), None)

    def credentials(self) -> Iterator[Credential]:
        """Iterate over the credentials that the pair has: odd, even, pending and last resort."""
        return (c for c in (self.odd, self.even, self.pending, self.last_resort) if c is not None)

    @classmethod
    def from_secret(cls, secret: str | bytes | Mapping[str, Any]) -> CredentialPair:
        """Read the accounts from JSON text or a mapping. Keys that are not mentioned here are ignored.

        A pair has gopqr's five keys: ``odd_username``, ``odd_password``, ``even_username``, ``even_password`` and
        ``active_credential`` (``"odd"`` or ``"even"``). If both keys of one account are missing, the pair is degraded.
        A single account has ``username`` (or ``user``) and ``password``, which are ignored if there are keys of a pair.
        Optional keys are ``pending_username``, ``pending_password``, ``pending_staged_at``, ``host``, ``port`` and
        ``dbname``.

        Raises :class:`InvalidSecret`, which identifies the key at fault and never shows a value.
        """
        try:
            return cls(**accounts_of(parse_secret(secret)))
        except InvalidSecret as exc:
            problem = str(exc)
        del secret  # raised from here, so that the traceback holds no frame with the text
        raise InvalidSecret(problem)
