"""What is judged, and what comes of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ...credentials import CredentialPair, Parity
from ...rotation.gates import Rules
from .facts import Account


class Level(enum.IntEnum):
    """How bad it is. The worst one decides the exit code."""

    OK = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is so, and what to do about it. No secret is in it."""

    level: Level
    name: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the store itself says of rotations: AWS's rules. ``period`` is the shortest time between two."""

    enabled: bool
    last: datetime | None = None
    next: datetime | None = None
    rule: str | None = None
    period: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is judged. ``changed_at`` has the accounts' change times as far as they are known."""

    pair: CredentialPair
    accounts: Mapping[Parity, Account]
    sslmode: str | None
    rules: Rules
    max_size: int
    changed_at: Mapping[Parity, datetime | None]
    schedule: Schedule | None = None
