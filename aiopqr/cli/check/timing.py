"""Judges when the accounts were changed, and when they will be changed next. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from ...credentials import Parity
from ...rotation.gates import Rules
from ...rotation.words import duration, moment
from .values import CheckFacts, Finding, Level, Schedule


def changes(facts: CheckFacts) -> Iterator[Finding]:
    """Whether both accounts can change before a pool has noticed, which would leave it with two old passwords."""
    if facts.pair.is_single:
        return
    rules, (odd, even) = facts.rules, (facts.changed_at.get(parity) for parity in Parity)
    horizon = rules.max_lifetime + rules.refresh_interval
    if rules.max_lifetime == 0:
        text = "max_lifetime is 0: connections that were opened with an old password are never replaced"
        yield Finding(Level.WARNING, "rotation spacing", text, "set max_lifetime in all pools (default: 1800 s)")
    elif odd is None or even is None:
        text = "the store does not say when the passwords were last changed"
        advice = f"use `aiopqr rotate`, which records the times, at most once every {rules.spacing:.0f} s"
        yield Finding(Level.NOTE, "rotation spacing", text, advice)
    elif 0 < (apart := abs((odd - even).total_seconds())) < horizon:
        text = (
            f"the last changes were {apart:.0f} s apart, less than max_lifetime + refresh interval ({horizon:.0f} s): "
            "a pool could have been left with two old passwords"
        )
        advice = f"space changes by at least {rules.spacing:.0f} s; `aiopqr rotate` refuses anything less"
        yield Finding(Level.PROBLEM, "rotation spacing", text, advice)
    else:
        text = f"no pool can be left with two old passwords (max_lifetime + refresh interval: {horizon:.0f} s)"
        yield Finding(Level.OK, "rotation spacing", text)


def next_rotation(facts: CheckFacts) -> Iterator[Finding]:
    """When the gate ``too-soon`` allows a rotation: one spacing after the most recent change."""
    times = [time for time in (facts.changed_at.get(parity) for parity in Parity) if time]
    now = next((account.role["now"] for account in facts.accounts.values() if "now" in account.role), None)
    if len(times) < 2 or now is None:
        return
    possible = max(times) + timedelta(seconds=facts.rules.spacing)
    left = (possible - now).total_seconds()
    text = f"possible at {moment(possible)}, in {duration(left)}" if left > 0 else f"possible since {moment(possible)}"
    yield Finding(Level.OK, "next rotation", text)


def of_schedule(schedule: Schedule, rules: Rules) -> Iterator[Finding]:
    if not schedule.enabled:
        yield Finding(
            Level.NOTE, "rotation schedule", "the store does not rotate by itself", "run `aiopqr rotate` on a schedule"
        )
        return
    parts = [schedule.rule or "an unknown rule"]
    parts += [f"last {schedule.last:%Y-%m-%d %H:%M %Z}"] if schedule.last else ["not yet run"]
    parts += [f"next {schedule.next:%Y-%m-%d %H:%M %Z}"] if schedule.next else []
    text = ", ".join(parts)
    if schedule.period is not None and schedule.period.total_seconds() < rules.spacing:
        text += f": more often than once every max_lifetime + refresh interval + margin ({rules.spacing:.0f} s)"
        advice = "rotate less often, or reduce max_lifetime, so that the two passwords never change too close together"
        yield Finding(Level.PROBLEM, "rotation schedule", text, advice)
    else:
        yield Finding(Level.OK, "rotation schedule", text)


def period_of(rule: str) -> timedelta | None:
    """The time between two rotations for AWS's ``rate(…)``; None for ``cron(…)``, where it can vary."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", rule.strip())
    return timedelta(**{f"{match[2]}s": int(match[1])}) if match else None
