"""The gates: reasons to refuse a rotation. Each has a name, a flag that overrides it, and numbers. Everything is pure.

A pool may hold a pair that is one refresh interval old, and sessions that are one lifetime old. So before an account is
changed, every pool must know the current password of the *other* account, and that password must work.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..credentials import Parity
from ..errors import ConfigurationError
from ..options import non_negative, positive
from .stores.store import StoredSecret
from .words import counted, duration, moment

_LISTED = 8  # how many sessions an objection names


class Gate(enum.StrEnum):
    """A reason to refuse a rotation. The value is also the name of its ``--force-…`` flag, if it has one."""

    TOO_SOON = "too-soon"  # pools may still have the other account's old password
    OTHER_REFUSED = "other-refused"  # the other account cannot log in now
    OLD_SESSIONS = "old-sessions"  # a pool has not replaced its connections since the other account was changed
    UNSEEN_SESSIONS = "unseen-sessions"  # the admin role cannot see whether there are such old sessions
    MISMATCH = "mismatch"  # the password in the store is not the one in the database
    OPEN_STAGE = "open-stage"  # another rotation is not finished
    IN_PROGRESS = "in-progress"  # another rotation is running now; nothing overrides this

    @property
    def flag(self) -> str | None:
        """The command line's flag that overrides this gate alone."""
        return None if self is Gate.IN_PROGRESS else f"--force-{self}"


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason not to rotate: the gate, a sentence, and the numbers in it. It contains no secrets."""

    gate: Gate
    text: str
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class LoginResult:
    """The outcome of one login over the applications' path.

    ``refused`` means that the server refused the account, and ``unreachable`` that nothing answered at all.
    """

    accepted: bool
    refused: bool = False
    text: str = "accepted"
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A session of one of the accounts.

    ``started`` and ``address`` are None if the admin role may not see them; ``address`` is None for a Unix socket, too.
    """

    parity: Parity
    pid: int
    application_name: str
    started: datetime | None
    address: str | None = None

    @property
    def origin(self) -> str:
        """The client of the session, in readable form."""
        return f"{self.application_name or 'no application name'}, {self.address or 'local socket'}"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything on which a decision is based: the store's secret, and what was found out about it at ``now``.

    ``now`` and the sessions' times are by the database's clock. ``pending`` is the outcome of a login with the staged
    password. It is None if nothing is staged, or if the stored password of that account works and there was no need to
    try. ``valid_until`` has the accounts' VALID UNTIL, if any, and ``absent`` the accounts whose role does not exist.
    """

    now: datetime
    secret: StoredSecret
    logins: dict[Parity, LoginResult]
    pending: LoginResult | None = None
    sessions: tuple[Session, ...] = ()
    valid_until: Mapping[Parity, datetime] = field(default_factory=dict)
    absent: frozenset[Parity] = frozenset()

    def is_expired(self, parity: Parity) -> bool:
        """Whether VALID UNTIL has passed. If so, the server refuses the account with any password."""
        end = self.valid_until.get(parity)
        return end is not None and end <= self.now

    def why_not(self, parity: Parity) -> str:
        """Why an account cannot log in, if the catalogue shows it. The server's own error does not say why."""
        if parity in self.absent:
            return f" (the role {self.username(parity)!r} does not exist)"
        if self.is_expired(parity):
            return f" (VALID UNTIL of {self.username(parity)!r} passed at {moment(self.valid_until[parity])})"
        return ""

    def username(self, parity: Parity) -> str:
        """The account's name."""
        credential = self.secret.pair[parity]
        return credential.username if credential else str(parity)


@dataclass(frozen=True, slots=True)
class Rules:
    """How cautious a rotation must be, for the pools in use. All times are in seconds.

    - ``max_lifetime`` and ``refresh_interval``: The longest of all pools that use the pair.
    - ``margin``: Allows for clocks that differ, stores that lag (Kubernetes takes up to 90 s to update a mounted
      Secret) and slow fetches.
    - ``exempt_applications``: Old sessions with these ``application_name``s do not count.
    - ``assume_changed_before``: If the store does not know when a password was changed, assume that it was before this
      time. By default, it counts as changed just now.
    - ``valid_for``: How long an account with VALID UNTIL is valid after its rotation: at least the spacing (default: as
      long as before).

    Raises :class:`ConfigurationError` for an invalid time.
    """

    max_lifetime: float = 1800.0
    refresh_interval: float = 60.0
    margin: float = 120.0
    exempt_applications: frozenset[str] = frozenset()
    assume_changed_before: datetime | None = None
    valid_for: float | None = None

    def __post_init__(self) -> None:
        if self.valid_for is not None:
            positive("valid_for", self.valid_for)
        for key in ("max_lifetime", "refresh_interval", "margin"):
            non_negative(key, getattr(self, key))
        if self.valid_for is not None and self.valid_for < self.spacing:
            raise ConfigurationError(
                f"valid_for must be at least {self.spacing:.0f} s, the shortest time between two rotations, "
                "or the account expires while they rely on it"
            )
        if self.assume_changed_before is not None and self.assume_changed_before.utcoffset() is None:
            raise ConfigurationError("assume_changed_before must be an aware datetime")

    @property
    def spacing(self) -> float:
        """How many seconds after one account was changed the other one may be."""
        return self.max_lifetime + self.refresh_interval + self.margin

    def changed_at(self, facts: Facts, parity: Parity) -> datetime:
        """When an account was changed or, if that is unknown, the latest possible time."""
        return facts.secret.changed_at(parity) or self.assume_changed_before or facts.now


def objections(facts: Facts, parity: Parity, rules: Rules) -> Iterator[Objection]:
    """The objections to changing the password of ``parity`` now."""
    yield from _too_soon(facts, parity.other, rules)
    yield from _other_refused(facts, parity.other)
    yield from _old_sessions(facts, parity.other, rules)
    yield from _mismatch(facts, parity)


def _too_soon(facts: Facts, other: Parity, rules: Rules) -> Iterator[Objection]:
    known = facts.secret.changed_at(other) or rules.assume_changed_before
    elapsed = (facts.now - (known or facts.now)).total_seconds()
    if elapsed >= rules.spacing:
        return
    name, left = facts.username(other), rules.spacing - elapsed
    if known is None:
        found = (
            f"the store does not know when {name!r} was last changed, so it counts as changed just now; if you know "
            "when, supply the time with --assume-changed-before"
        )
    elif elapsed < 0:
        found = f"{name!r} was changed {duration(-elapsed)} in the future, so a clock is wrong"
    else:
        found = f"{name!r} was changed {duration(elapsed)} ago"
    needed = (
        f"it can take {rules.spacing:.0f} s until all pools use its new password (lifetime "
        f"{rules.max_lifetime:.0f} + refresh {rules.refresh_interval:.0f} + margin {rules.margin:.0f})"
    )
    possible = facts.now + timedelta(seconds=left) if known else None
    when = f". The next rotation is possible at {moment(possible)}, in {duration(left)}" if possible else ""
    numbers = {
        "elapsed": elapsed if known else None,
        "needed": rules.spacing,
        "max_lifetime": rules.max_lifetime,
        "refresh_interval": rules.refresh_interval,
        "margin": rules.margin,
        "possible_at": possible.isoformat() if possible else None,
        "possible_in": left if possible else None,
    }
    yield Objection(Gate.TOO_SOON, f"{found}; {needed}{when}", {"account": str(other), **numbers})


def _other_refused(facts: Facts, other: Parity) -> Iterator[Objection]:
    login = facts.logins[other]
    if not login.accepted:
        why = facts.why_not(other)
        text = f"{facts.username(other)!r}, which pools would have to fall back to, cannot log in: {login.text}{why}"
        if facts.is_expired(other):
            text += f". Rotate that account first, to renew it: --account {other}"
        yield Objection(Gate.OTHER_REFUSED, text, {"account": str(other), "refused": int(login.refused)})


def _old_sessions(facts: Facts, other: Parity, rules: Rules) -> Iterator[Objection]:
    changed, name = rules.changed_at(facts, other), facts.username(other)
    counted_in = [
        session
        for session in facts.sessions
        if session.parity is other and session.application_name not in rules.exempt_applications
    ]
    old = [(session, session.started) for session in counted_in if session.started and session.started < changed]
    unseen = sum(session.started is None for session in counted_in)
    if old:
        listed = [
            f"pid {session.pid} ({session.origin}, {duration((facts.now - started).total_seconds())} old)"
            for session, started in sorted(old, key=lambda one: one[1])
        ]
        more = [f"{len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
        oldest = max((changed - started).total_seconds() for _, started in old)
        are = "is" if len(old) == 1 else "are"
        text = (
            f"{counted(len(old), 'session')} of {name!r} {are} from before its last change, so a pool that has not "
            f"replaced its connections may still hold the old password: {', '.join(listed[:_LISTED] + more)}"
        )
        text += _about_a_pooler([session for session, _ in old])
        numbers: dict[str, float | int | str | None] = {"sessions": len(old), "oldest": oldest}
        yield Objection(Gate.OLD_SESSIONS, text, {"account": str(other), **numbers})
    if unseen:
        text = (
            f"the admin role cannot see when {counted(unseen, 'session')} of {name!r} began: grant it pg_read_all_stats"
        )
        yield Objection(Gate.UNSEEN_SESSIONS, text, {"account": str(other), "sessions": unseen})


def _about_a_pooler(old: list[Session]) -> str:
    """Advice if the old sessions look like PgBouncer's: they come from one address without an application name."""
    nameless = [session.address for session in old if not session.application_name]
    if not nameless or len(set(nameless)) > 1:
        return ""
    return (
        f". Those without an application name, from {nameless[0] or 'a local socket'}, look like server connections of "
        "a pooler such as PgBouncer, which no application's pool can replace: set the pooler's server_lifetime below "
        "max_lifetime, or run RECONNECT on its console"
    )


def _mismatch(facts: Facts, parity: Parity) -> Iterator[Objection]:
    login, pending = facts.logins[parity], facts.pending
    # An expired account is refused with any password, and the rotation renews it.
    if login.accepted or (pending is not None and pending.accepted) or facts.is_expired(parity):
        return
    which = "neither the stored nor the staged password" if pending else "the stored password"
    negated = "works" if pending else "does not work"
    text = f"{which} of {facts.username(parity)!r} {negated}: {login.text}{facts.why_not(parity)}"
    yield Objection(Gate.MISMATCH, text, {"account": str(parity), "refused": int(login.refused)})
