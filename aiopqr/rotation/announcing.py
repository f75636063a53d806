"""The time between staging a password and changing it: how long pools get to step aside, and which have not done so."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from .._login import DRIVER_ERRORS
from .._refresh.announcement import STEP_ASIDE_MAX
from ..errors import RotationError
from .connects import APPLICATION_NAME
from .database import Database
from .gates import Rules
from .stores.store import StoredSecret
from .words import counted, text_of

logger = logging.getLogger("aiopqr")

#: The longest announcement, in seconds. The rest of the time that pools step aside is for changing the password.
ANNOUNCE_MAX = STEP_ASIDE_MAX - 60.0

# Seconds that an announcement takes beyond the pools' refresh interval, for the fetch and for connects in progress.
_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Announcing:
    """The rotator waits ``seconds`` for pools to step aside.

    ``unaware`` names the clients that have not, with the number of sessions that each has opened with the account since
    every pool should have seen the announcement. It is empty before the first wait.
    """

    seconds: float
    username: str
    unaware: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        if not self.unaware:
            return f"waiting {self.seconds:.0f} s for pools to see it and stop using {self.username!r}"
        who = "; ".join(f"{counted(number, 'session')} of {origin}" for origin, number in self.unaware)
        return (
            f"some pools have not seen that {self.username!r} is about to change, and have opened sessions as that "
            f"account since ({who}); waiting {self.seconds:.0f} s more, once"
        )


def usual_announcement(rules: Rules) -> float:
    """The default time to announce a change, in seconds. It is 0 if pools do not poll and cannot see it."""
    return min(rules.refresh_interval + _GRACE, ANNOUNCE_MAX) if rules.refresh_interval else 0.0


def announcement_left(staged: StoredSecret, announce: float) -> float:
    """Seconds until pools have had ``announce`` seconds to see the stage; 0 or less if they have had that already."""
    return announce - _age(staged)


def announced_longer(staged: StoredSecret, announce: float) -> float:
    """Seconds to wait for pools that have not seen the stage, while the other pools still step aside."""
    return min(announce, max(ANNOUNCE_MAX - _age(staged), 0.0))


async def unaware(
    database: Database, staged: StoredSecret, announce: float, rules: Rules
) -> tuple[tuple[str, int], ...]:
    """The clients that have opened sessions with the staged account since every pool should have seen the stage.

    Each comes with the number of its sessions.
    """
    pending, parity = staged.pair.pending, staged.pair.pending_parity
    assert pending is not None
    assert parity is not None
    late_for = _age(staged) - announce + min(_GRACE, announce / 2)
    try:
        async with database.connected() as admin:
            due = await database.time(admin) - timedelta(seconds=late_for)
            sessions = await database.sessions(admin, {pending.username: parity})
    except (RotationError, *DRIVER_ERRORS) as exc:
        logger.warning("rotation: cannot see whether all pools have stepped aside; continuing: %s", text_of(exc))
        return ()
    exempt = rules.exempt_applications | {APPLICATION_NAME}
    late = Counter(
        session.origin
        for session in sessions
        if session.started and session.started > due and session.application_name not in exempt
    )
    return tuple(late.most_common())


def _age(staged: StoredSecret) -> float:
    """Seconds since the password was staged, or 0 if the store does not know that."""
    return max((datetime.now(UTC) - staged.staged_at).total_seconds(), 0.0) if staged.staged_at else 0.0
