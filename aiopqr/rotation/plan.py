"""Decides from facts alone what a rotation will do. Nothing here awaits, so every case can be tested in a table.

An open stage is finished before anything new begins, always with its own password. That is right even if the rotator
that staged it was not killed but only asleep, since both then set the same password.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..credentials import Parity
from .errors import RotationRefused
from .gates import Facts, Gate, Objection, Rules, objections
from .words import duration, moment

# How long an account with VALID UNTIL is valid, if nothing shows how long it was valid before.
_USUAL_VALIDITY = timedelta(days=90)


class Action(enum.StrEnum):
    """What a rotation does with the account."""

    ROTATE = "rotate"  # generate, stage, announce, alter, log in, promote
    RESUME = "resume"  # staged, not yet in the database: announce, alter, log in, promote
    FINISH = "finish"  # staged, and in the database: log in, promote


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done, and all objections to it. It contains no secrets.

    ``forced`` names the gates that the operator overrides; ``refusals`` are the remaining objections. ``abandons``
    names the account whose unfinished rotation is abandoned first. ``valid_until`` is the account's new VALID UNTIL
    (None if it has none), and ``valid_before`` its current one.
    """

    action: Action
    parity: Parity
    username: str
    objections: tuple[Objection, ...]
    account: Parity | None = None
    forced: frozenset[Gate] = frozenset()
    abandons: str | None = None
    valid_until: datetime | None = None
    valid_before: datetime | None = None

    @property
    def refusals(self) -> tuple[Objection, ...]:
        """The objections that are not overridden. If there are none, the plan can be applied."""
        return tuple(objection for objection in self.objections if objection.gate not in self.forced)

    def raise_for_refusals(self) -> None:
        """Raise :class:`RotationRefused` if an objection remains."""
        if self.refusals:
            raise RotationRefused(self.refusals)

    @property
    def steps(self) -> tuple[str, ...]:
        """What would be done, in words. The rotator adds the wait between staging and ALTER ROLE."""
        name = self.username
        given_up = f"give up the staged password of {self.abandons!r}: ALTER ROLE with the stored one"
        abandon = (given_up,) if self.abandons else ()
        stage = (f"generate a password for {name!r} and stage it in the store",)
        renewed = f", and VALID UNTIL {moment(self.valid_until)}" if self.valid_until else ""
        alter = (f"ALTER ROLE {name!r} with a SCRAM-SHA-256 verifier of the staged password{renewed}",)
        finish = (
            f"log in as {name!r} with it over the applications' path",
            f"make it the stored password of {name!r}, and {self.parity} the active account",
        )
        match self.action:
            case Action.ROTATE:
                return abandon + stage + alter + finish
            case Action.RESUME:
                return alter + finish
            case Action.FINISH:
                return finish


def decide(facts: Facts, rules: Rules, *, account: Parity | None = None, forced: Iterable[Gate] = ()) -> Plan:
    """Make the plan for ``facts``.

    ``account`` is the operator's choice. The default is an account with an open stage, else one whose VALID UNTIL has
    passed, else the one that was not changed last. If ``mismatch`` is forced, changing the account repairs it.
    """
    forced = frozenset(forced) - {Gate.IN_PROGRESS}
    staged = facts.secret.pair.pending_parity
    parity = account or staged or _expired(facts) or _changed_first(facts, rules)
    against = objections(facts, parity, rules)
    action, abandons = Action.ROTATE, None
    found: list[Objection] = []
    if staged is parity:
        if facts.pending is not None and facts.pending.accepted:
            # The database has the staged password already, so the stored one is wrong until the store is updated. No
            # gate can object to that.
            action, against = Action.FINISH, iter(())
        else:
            action = Action.RESUME
    elif staged is not None:
        objection, can_be_given_up = _open_stage(facts, staged)
        found.append(objection)
        if not can_be_given_up:
            forced -= {Gate.OPEN_STAGE}
        abandons = facts.username(staged)
    found.extend(against)
    end = facts.valid_until.get(parity)
    return Plan(
        action,
        parity,
        facts.username(parity),
        tuple(found),
        account,
        forced,
        abandons,
        None if action is Action.FINISH else renewed(end, facts.secret.changed_at(parity), facts.now, rules),
        end,
    )


def _expired(facts: Facts) -> Parity | None:
    """The account whose VALID UNTIL has passed, if there is only one."""
    expired = [parity for parity in Parity if facts.is_expired(parity)]
    return expired[0] if len(expired) == 1 else None


def renewed(end: datetime | None, changed: datetime | None, now: datetime, rules: Rules) -> datetime | None:
    """The new VALID UNTIL of an account that has one. By default it is valid for as long as before."""
    if end is None:
        return None
    if rules.valid_for is not None:
        return now + timedelta(seconds=rules.valid_for)
    period = end - changed if changed and end > changed else max(end - now, _USUAL_VALIDITY)
    # Rounded up to a minute, because otherwise each rotation would shorten it by its own duration. At least the time
    # that pools need.
    seconds = max(60 * math.ceil(period.total_seconds() / 60), rules.spacing)
    return now + timedelta(seconds=seconds)


def _changed_first(facts: Facts, rules: Rules) -> Parity:
    """The account that was not changed last or, if the times do not show that, the one that is not active."""
    inactive = facts.secret.pair.active.other
    times = {parity: rules.changed_at(facts, parity) for parity in Parity}
    return min((inactive, inactive.other), key=times.__getitem__)


def _open_stage(facts: Facts, staged: Parity) -> tuple[Objection, bool]:
    """The objection to leaving another account's stage open, and whether that stage could be abandoned instead."""
    name, stored = facts.username(staged), facts.logins[staged]
    age = (facts.now - facts.secret.staged_at).total_seconds() if facts.secret.staged_at else None
    since = f" (it began {duration(age)} ago)" if age is not None else ""
    text = f"a rotation of {name!r} is not finished{since}: run without --account to finish it"
    if not stored.accepted:
        text += f" (it cannot be given up, since the stored password of {name!r} does not work: {stored.text})"
    return Objection(Gate.OPEN_STAGE, text, {"account": str(staged), "age": age}), stored.accepted
