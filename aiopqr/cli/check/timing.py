"""When the accounts were changed, and when they will be. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from ...credentials import Parity
from ...rotation.gates import Rules
from ...rotation.words import duration, moment
from .values import Facts, Finding, Level, Schedule


def changes(facts: Facts) -> Iterator[Finding]:
    """Whether a pair that a pool holds can become wholly stale: both accounts changed within its horizon."""
    if facts.pair.is_single:
        return
    rules, (odd, even) = facts.rules, (facts.changed_at.get(parity) for parity in Parity)
    horizon = rules.max_lifetime + rules.refresh_interval
    if rules.max_lifetime == 0:
        text = "max_lifetime is 0: connections that use an old password are never replaced"
        yield Finding(Level.WARNING, "rotation spacing", text, "give the pools a max_lifetime; 1800 s is the default")
    elif odd is None or even is None:
        text = "the store does not say when the passwords were last changed"
        advice = f"use `aiopqr rotate`, which records the times, at most once every {rules.spacing:.0f} s"
        yield Finding(Level.NOTE, "rotation spacing", text, advice)
    elif 0 < (apart := abs((odd - even).total_seconds())) < horizon:
        text = (
            f"the last changes were {apart:.0f} s apart, less than lifetime + refresh interval ({horizon:.0f} s): a "
            "pool could have been left with two old passwords"
        )
        advice = f"space changes by at least {rules.spacing:.0f} s; `aiopqr rotate` refuses anything less"
        yield Finding(Level.PROBLEM, "rotation spacing", text, advice)
    else:
        text = f"no pool can be left with two old passwords (lifetime + refresh interval: {horizon:.0f} s)"
        yield Finding(Level.OK, "rotation spacing", text)


def next_rotation(facts: Facts) -> Iterator[Finding]:
    """When the gate too-soon opens: a spacing after the change of the account that is not to be changed next."""
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
            Level.NOTE, "rotation schedule", "the store does not rotate by itself", "schedule `aiopqr rotate`"
        )
        return
    parts = [schedule.rule or "an unknown rule"]
    parts += [f"last {schedule.last:%Y-%m-%d %H:%M %Z}"] if schedule.last else ["not yet run"]
    parts += [f"next {schedule.next:%Y-%m-%d %H:%M %Z}"] if schedule.next else []
    text = ", ".join(parts)
    if schedule.period is not None and schedule.period.total_seconds() < rules.spacing:
        text += f": more often than every lifetime + refresh interval + margin ({rules.spacing:.0f} s)"
        advice = "rotate less often, or shorten max_lifetime, so that the two passwords change further apart"
        yield Finding(Level.PROBLEM, "rotation schedule", text, advice)
    else:
        yield Finding(Level.OK, "rotation schedule", text)


def period_of(rule: str) -> timedelta | None:
    """The time between two rotations by AWS's ``rate(…)``; None for ``cron(…)``, which may hold any."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", rule.strip())
    return timedelta(**{f"{match[2]}s": int(match[1])}) if match else None
