"""Events about logins, and about whether the server answers at all."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from ..credentials import Parity
from .event import Event

# What a verdict means, in words for the log.
_REASONS = {
    "credential": "wrong password, or the account does not exist",
    "account": "the account may not connect",
    "account full": "the account's connection limit is reached",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(Event):
    """The server refused an account. ``verdict`` is the value of a :class:`~aiopqr.refusals.Verdict`."""

    parity: Parity
    username: str
    verdict: str
    sqlstate: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.username} was refused again ({self._reason})"

    @property
    def _reason(self) -> str:
        reason = _REASONS.get(self.verdict, self.verdict)
        return f"{self.sqlstate}, {reason}" if self.sqlstate else reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuarantined(LoginRefused):
    """An account was refused. It is not used until it gets a new password, or until a retry in ``retry_in`` seconds."""

    level: ClassVar = logging.WARNING
    retry_in: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.username} was refused ({self._reason}); fetching new credentials, and not using this "
            f"account for {self.retry_in:.0f} s unless it gets a new password"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecovered(Event):
    """An account that was refused can log in again, ``after`` seconds later."""

    level: ClassVar = logging.INFO
    parity: Parity
    username: str
    after: float

    def __str__(self) -> str:
        return f"{self.name}: {self.username} logs in again, {self.after:.1f} s after it was refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack(Event):
    """A connect's first account was refused, so it used the other one."""

    level: ClassVar = logging.INFO
    refused: Parity
    parity: Parity
    username: str

    def __str__(self) -> str:
        return (
            f"{self.name}: connected as {self.username} ({self.parity}) because the {self.refused} account was refused"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllRefused(Event):
    """Every account of the pair is refused, so connects wait for newer credentials. ``pair_age`` is in seconds."""

    level: ClassVar = logging.ERROR
    usernames: tuple[str, ...]
    pair_age: float

    def __str__(self) -> str:
        return (
            f"{self.name}: every account is refused ({', '.join(self.usernames)}); connects now wait for newer "
            f"credentials (the current ones were fetched {self.pair_age:.0f} s ago)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUnavailable(Event):
    """The server has become unavailable. Connects retry until their timeout."""

    level: ClassVar = logging.WARNING
    error: str

    def __str__(self) -> str:
        return f"{self.name}: the server is unavailable ({self.error}); connects wait and retry until their timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecovered(Event):
    """The server answers logins again, after an outage of ``after`` seconds."""

    level: ClassVar = logging.INFO
    after: float

    def __str__(self) -> str:
        return f"{self.name}: the server answers again after {self.after:.1f} s"
