"""Events about a refresher's fetches, and about what they mean for the accounts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from ..credentials import Parity
from .event import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(Event):
    """A fetch returned something new: ``changed`` accounts, or a pending password."""

    level: ClassVar = logging.INFO
    changed: tuple[Parity, ...]
    pending: Parity | None

    def __str__(self) -> str:
        what = [f"{parity} changed" for parity in self.changed]
        if self.pending:
            what.append(f"a pending password for {self.pending}")
        return f"{self.name}: fetched new credentials ({', '.join(what) or 'no password changed'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsRenewed(Event):
    """A fetch returned the same credentials with a later expiry.

    The first of them expires in ``expires_in`` seconds. None: they do not expire.
    """

    expires_in: float | None

    def __str__(self) -> str:
        until = "no longer expire" if self.expires_in is None else f"expire in {self.expires_in:.0f} s"
        return f"{self.name}: the credentials were renewed, and {until}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialExpired(Event):
    """An account's password or lease expired ``ago`` seconds ago, and the source has nothing newer.

    It is no longer used for logins.
    """

    level: ClassVar = logging.ERROR
    parity: Parity
    username: str
    ago: float

    def __str__(self) -> str:
        return (
            f"{self.name}: the credentials of {self.username} expired {self.ago:.0f} s ago and are not used until the "
            "source returns newer ones; find out why it does not renew them"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshFailed(Event):
    """A fetch failed, so the pair in use stays in use. The next fetch is in ``retry_in`` seconds.

    ``pair_age`` is how many seconds ago the pair was last fetched, or None if the very first fetch failed.
    """

    level: ClassVar = logging.WARNING
    error: str
    failures: int
    retry_in: float
    pair_age: float | None

    def __str__(self) -> str:
        if self.pair_age is None:
            return f"{self.name}: the first credentials could not be fetched ({self.error})"
        return (
            f"{self.name}: fetching credentials failed {_times(self.failures)} ({self.error}); keeping those that were "
            f"fetched {self.pair_age:.0f} s ago, and trying again in {self.retry_in:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRecovered(Event):
    """A fetch succeeded after ``failures`` failures in a row, whether or not it returned anything new."""

    level: ClassVar = logging.INFO
    failures: int

    def __str__(self) -> str:
        return f"{self.name}: fetching credentials works again, after it failed {_times(self.failures)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedAside(Event):
    """The store announces a new password for an account, so new connections use the other account while that works.

    This ends when the rotation is finished or abandoned, and after ``ends_in`` seconds at the latest.
    """

    level: ClassVar = logging.INFO
    parity: Parity
    username: str
    ends_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: the password of {self.username} is about to change; new connections use the other account "
            f"until it has, for {self.ends_in:.0f} s at most"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedBack(Event):
    """New connections use both accounts again, after avoiding one for ``after`` seconds.

    If ``closed``, the store no longer shows a staged password for that account. Otherwise it has shown one for too
    long, probably because the rotation was interrupted. ``aiopqr rotate`` finishes it.
    """

    level: ClassVar = logging.INFO
    parity: Parity
    username: str
    after: float
    closed: bool

    def __str__(self) -> str:
        why = (
            "the rotation is over"
            if self.closed
            else "its new password has been staged for too long; run `aiopqr rotate` to finish the rotation"
        )
        return f"{self.name}: new connections use {self.username} again after {self.after:.0f} s: {why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDegraded(Event):
    """The store returns only one account, so there is nothing to fall back to."""

    level: ClassVar = logging.WARNING
    missing: Parity

    def __str__(self) -> str:
        return f"{self.name}: the secret has no {self.missing} account, so there is no other one to fall back to"


def _times(failures: int) -> str:
    return "once" if failures == 1 else f"{failures} times in a row"
