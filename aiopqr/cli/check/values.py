"""The facts that are judged, and the findings."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ...credentials import CredentialPair, Parity
from ...rotation.gates import Rules
from .facts import AccountFacts


class Level(enum.IntEnum):
    """How serious a finding is. The most serious one decides the exit code."""

    OK = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what is the case, and what to do about it. It contains no secrets."""

    level: Level
    name: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The store's own rotation schedule, as AWS describes it. ``period`` is the time between rotations, if fixed."""

    enabled: bool
    last: datetime | None = None
    next: datetime | None = None
    rule: str | None = None
    period: timedelta | None = None


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """Everything that is judged. ``changed_at`` says when each account was last changed, or None if that is unknown."""

    pair: CredentialPair
    accounts: Mapping[Parity, AccountFacts]
    sslmode: str | None
    rules: Rules
    max_size: int
    changed_at: Mapping[Parity, datetime | None]
    schedule: Schedule | None = None
