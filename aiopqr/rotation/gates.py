"""What can speak against a rotation, as data: each gate has a name, a flag that overrides it, and says its numbers.

The gates stand apart because they are the safety of a rotation and are to be read as a whole. They are pure: facts in,
objections out.

What they guard: a pool may hold a pair that is one refresh interval old, and a session one lifetime old. So before an
account is changed, the *other* one must be known by its present password to every pool, and must work.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from ..credentials import Parity
from ..errors import ConfigurationError
from ..options import non_negative
from .stores.store import StoredSecret


class Gate(enum.StrEnum):
    """Why a rotation can be refused. The value names the ``--force-…`` flag, where there is one."""

    TOO_SOON = "too-soon"  # pools may still hold the other account's old password
    OTHER_REFUSED = "other-refused"  # the other account does not log in right now
    OLD_SESSIONS = "old-sessions"  # some pool has not recycled since the other account's change
    UNSEEN_SESSIONS = "unseen-sessions"  # whether one has cannot be seen
    MISMATCH = "mismatch"  # the store's password is not the database's
    OPEN_STAGE = "open-stage"  # another rotation is not finished
    IN_PROGRESS = "in-progress"  # another rotation runs right now: nothing overrides that

    @property
    def flag(self) -> str | None:
        """The command line's flag that overrides this gate alone."""
        return None if self is Gate.IN_PROGRESS else f"--force-{self}"


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason not to rotate: the gate, its numbers, and what they mean in words. No secret is in it."""

    gate: Gate
    text: str
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Login:
    """What came of one login on the applications' path. ``refused`` says that the account is to blame."""

    accepted: bool
    refused: bool = False
    text: str = "accepted"


@dataclass(frozen=True, slots=True)
class Session:
    """A session of one of the accounts. ``started`` is None when the admin role may not see it."""

    parity: Parity
    pid: int
    application_name: str
    started: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision is made from: the store's secret, and what was found out about it at ``now``.

    ``now`` is the database's clock, as the sessions' times are. ``pending`` is the staged password's login; None when
    nothing is staged, or when the account's stored password was accepted, which says all there is to know.
    """

    now: datetime
    secret: StoredSecret
    logins: dict[Parity, Login]
    pending: Login | None = None
    sessions: tuple[Session, ...] = ()

    def username(self, parity: Parity) -> str:
        """The account's name."""
        credential = self.secret.pair[parity]
        return credential.username if credential else str(parity)


@dataclass(frozen=True, slots=True)
class Rules:
    """How much caution the pools in use call for; times in seconds.

    ``max_lifetime`` and ``refresh_interval`` are the longest of all pools that use the pair, and ``margin`` covers
    clocks, stores that lag (Kubernetes takes up to 90 s to update a mounted secret) and slow fetches.
    ``exempt_applications`` are ``application_name``s whose old sessions do not count. ``assume_changed_before`` is an
    operator's word for change times that the store does not know; otherwise "not known" counts as "just now".

    Raises :class:`ConfigurationError` for a time that cannot be.
    """

    max_lifetime: float = 1800.0
    refresh_interval: float = 60.0
    margin: float = 120.0
    exempt_applications: frozenset[str] = frozenset()
    assume_changed_before: datetime | None = None

    def __post_init__(self) -> None:
        for key in ("max_lifetime", "refresh_interval", "margin"):
            non_negative(key, getattr(self, key))
        if self.assume_changed_before is not None and self.assume_changed_before.utcoffset() is None:
            raise ConfigurationError("assume_changed_before must be an aware datetime")

    @property
    def spacing(self) -> float:
        """How long after one account's change the other one's may follow, in seconds."""
        return self.max_lifetime + self.refresh_interval + self.margin

    def changed_at(self, facts: Facts, parity: Parity) -> datetime:
        """When an account was changed, for a decision that must not be wrong."""
        return facts.secret.changed_at(parity) or self.assume_changed_before or facts.now


def objections(facts: Facts, parity: Parity, rules: Rules) -> Iterator[Objection]:
    """What speaks against changing the password of ``parity``."""
    yield from _too_soon(facts, parity.other, rules)
    yield from _other_refused(facts, parity.other)
    yield from _old_sessions(facts, parity.other, rules)
    yield from _mismatch(facts, parity)


def _too_soon(facts: Facts, other: Parity, rules: Rules) -> Iterator[Objection]:
    known = facts.secret.changed_at(other) or rules.assume_changed_before
    elapsed = (facts.now - (known or facts.now)).total_seconds()
    if elapsed >= rules.spacing:
        return
    name = facts.username(other)
    if known is None:
        told = (
            f"when {name!r} was last changed is not known, and counts as just now "
            "(--assume-changed-before tells it, if you know)"
        )
    elif elapsed < 0:
        told = f"{name!r} was changed {-elapsed:.0f} s in the future: a clock is wrong"
    else:
        told = f"{name!r} was changed {elapsed:.0f} s ago"
    needed = (
        f"pools need up to {rules.spacing:.0f} s to have its new password everywhere (lifetime "
        f"{rules.max_lifetime:.0f} + refresh {rules.refresh_interval:.0f} + margin {rules.margin:.0f})"
    )
    numbers = {
        "elapsed": elapsed if known else None,
        "needed": rules.spacing,
        "max_lifetime": rules.max_lifetime,
        "refresh_interval": rules.refresh_interval,
        "margin": rules.margin,
    }
    yield Objection(Gate.TOO_SOON, f"{told}; {needed}", {"account": str(other), **numbers})


def _other_refused(facts: Facts, other: Parity) -> Iterator[Objection]:
    login = facts.logins[other]
    if not login.accepted:
        text = f"{facts.username(other)!r}, which pools are to fall back to, does not log in: {login.text}"
        yield Objection(Gate.OTHER_REFUSED, text, {"account": str(other), "refused": int(login.refused)})


def _old_sessions(facts: Facts, other: Parity, rules: Rules) -> Iterator[Objection]:
    changed, name = rules.changed_at(facts, other), facts.username(other)
    counted = [
        session
        for session in facts.sessions
        if session.parity is other and session.application_name not in rules.exempt_applications
    ]
    old = [session for session in counted if session.started is not None and session.started < changed]
    unseen = sum(session.started is None for session in counted)
    if old:
        by_name = Counter(session.application_name or "(no application_name)" for session in old)
        oldest = max((changed - session.started).total_seconds() for session in old if session.started)
        told = ", ".join(f"{application} {count}" for application, count in by_name.most_common())
        text = (
            f"{len(old)} sessions of {name!r} are from before its last change, the oldest by {oldest:.0f} s: "
            f"a pool that has not recycled may still hold its old password ({told})"
        )
        numbers: dict[str, float | int | str | None] = {"sessions": len(old), "oldest": oldest}
        yield Objection(Gate.OLD_SESSIONS, text, {"account": str(other), **numbers})
    if unseen:
        text = (
            f"the start of {unseen} sessions of {name!r} cannot be seen: "
            "grant pg_read_all_stats to the role that rotates"
        )
        yield Objection(Gate.UNSEEN_SESSIONS, text, {"account": str(other), "sessions": unseen})


def _mismatch(facts: Facts, parity: Parity) -> Iterator[Objection]:
    login, pending = facts.logins[parity], facts.pending
    if login.accepted or (pending is not None and pending.accepted):
        return
    which = "neither the stored nor the staged password" if pending else "the stored password"
    negated = "logs in" if pending else "does not log in"
    text = f"{which} of {facts.username(parity)!r} {negated}: {login.text}"
    yield Objection(Gate.MISMATCH, text, {"account": str(parity), "refused": int(login.refused)})
