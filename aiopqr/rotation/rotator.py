"""The rotator: a rotation whose order survives a crash at any point: stage, announce, alter, log in, promote.

At every moment, each password that the database can possibly accept is in the store, and only one account is touched:

| killed after | the database accepts | the store has     | the next run                                            |
|--------------|----------------------|-------------------|---------------------------------------------------------|
| nothing      | old                  | old               | rotates                                                 |
| stage        | old                  | old, staged new   | waits for the rest of the announcement, then continues  |
| announce     | old                  | old, staged new   | alters with the staged password, logs in, promotes      |
| alter        | new                  | old, staged new   | logs in, promotes; until then, pools use the other      |
|              |                      |                   | account, or the staged password                         |
| log in       | new                  | old, staged new   | the same                                                |
| promote      | new                  | new               | begins a new rotation, when the gates allow it          |

If the applications' path refuses the new password, the change is undone: first the account gets its stored password
back, then the stage is closed. So the same table holds for a crash during the undo.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from .._login import DRIVER_ERRORS
from ..credentials import Parity
from ..errors import ConfigurationError, RotationError, describe, without_frames
from ..options import non_negative, positive
from .announcing import ANNOUNCE_MAX, Announcing, usual_announcement
from .connects import AccountConnect, AdminConnect
from .database import Database
from .errors import RotationFailed, RotationRefused, StoreConflict
from .gates import Gate, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan, decide
from .run import RotationOptions, Run, Step
from .stores.store import SecretStore
from .words import text_of

logger = logging.getLogger("aiopqr")


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done. ``ended`` is the number of old sessions that were ended; ``warning`` says what is left to do."""

    action: Action
    parity: Parity
    username: str
    changed_at: datetime
    ended: int | None = None
    warning: str | None = None


class Rotator:
    """Changes the password of one account of a pair at a time, so that no pool is ever without a working one.

    ``admin`` and ``verify`` are DSNs, or async callables that return a connection: ``admin()`` as a role that may alter
    the accounts, and ``verify(credential)`` with that account, over the same path as applications. ``store`` holds the
    pair. ``rules`` describes the pools in use, which determines the gates. All times are in seconds:

    - ``announce``: The time between staging a password and changing it, in which pools step aside; 0 means none.
      The default is the rules' refresh interval plus 10, or 0 if that interval is 0, since then pools do not poll. Add
      the store's own delay: a Secret that Kubernetes mounts is up to 90 s late. Pools step aside for 900 s at most,
      so a time of more than 840 s raises :class:`ConfigurationError`.
    - ``end_sessions_after``: How long after the rotation the rotated account's old sessions are ended. None: they live
      until the pools replace them.
    - ``connect_timeout`` limits each connect, and ``verify_timeout`` the wait until the applications' path accepts the
      new password.

    ``listener`` is called with each :class:`Step` when it is done, and ``on_announcing`` before each wait for pools.
    """

    def __init__(
        self,
        *,
        admin: str | AdminConnect,
        store: SecretStore,
        verify: str | AccountConnect,
        rules: Rules | None = None,
        passwords: PasswordRule | None = None,
        announce: float | None = None,
        end_sessions_after: float | None = None,
        connect_timeout: float = 10.0,
        verify_timeout: float = 30.0,
        listener: Callable[[Step], None] = lambda step: None,
        on_announcing: Callable[[Announcing], None] = lambda announcing: None,
    ) -> None:
        rules = rules or Rules()
        if announce is None:
            announce = usual_announcement(rules)
        if announce > ANNOUNCE_MAX:
            raise ConfigurationError(
                f"announce must be at most {ANNOUNCE_MAX:.0f} s: pools do not step aside for much longer"
            )
        self._store = store
        self._database = Database(admin, verify, timeout=positive("connect_timeout", connect_timeout))
        if end_sessions_after is not None:
            non_negative("end_sessions_after", end_sessions_after)
        self._end_sessions_after = end_sessions_after
        self._options = RotationOptions(
            rules=rules,
            passwords=passwords or PasswordRule(),
            announce=non_negative("announce", announce),
            verify_timeout=positive("verify_timeout", verify_timeout),
            listener=listener,
            on_announcing=on_announcing,
        )

    @property
    def announce(self) -> float:
        """Seconds between staging a password and changing it."""
        return self._options.announce

    async def plan(self, *, account: Parity | None = None, force: Iterable[Gate] = ()) -> Plan:
        """Return what would be done now, with all objections. This logs in with both accounts, and changes nothing.

        ``account`` chooses the account; by default it is the one that was not changed last. ``force`` names the gates
        to override. Raises :class:`PathDown` if an account could not be tried over the applications' path, and
        :class:`RotationError` if other facts cannot be gathered, or if the store reports that it is not writable.
        """
        with _clean_errors():
            secret = await self._store.read()
            if check_writable := getattr(self._store, "check_writable", None):
                await check_writable()
            async with self._database.connected() as admin:
                facts = await self._database.gather(admin, secret)
        return decide(facts, self._options.rules, account=account, forced=force)

    async def apply(self, plan: Plan) -> Rotation:
        """Carry out the plan. First, the facts are gathered and judged again, with other rotators locked out.

        Raises :class:`RotationRefused` if a gate objects, the situation has changed since the plan was made, or
        somebody else has changed the store; :class:`PathDown` if an account could not be tried over the applications'
        path; and :class:`StoreNotWritable` if the store does not accept a new password. In all three cases, nothing was
        changed.

        Raises :class:`RotationUndone` if the rotation failed and everything is as it was before. Raises
        :class:`RotationFailed`, or another :class:`RotationError`, if it could not be finished. Then run it again to
        finish or undo it. That also works after a cancellation, or a crash at any point.
        """
        plan.raise_for_refusals()
        with _clean_errors():
            try:
                changed_at = await self._rotate(plan)
            except StoreConflict as exc:  # nothing was altered yet, and the stage is no longer ours
                text = f"another rotator or a person has just changed the store: {exc}. This run changed no password"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)]) from None
        logger.info("rotation: the password of %r was changed (%s)", plan.username, plan.action)
        ended, warning = await self._end_sessions(plan, changed_at)
        return Rotation(plan.action, plan.parity, plan.username, changed_at, ended, warning)

    async def _rotate(self, plan: Plan) -> datetime:
        return await Run(plan, self._database, self._store, self._options).rotate()

    async def _end_sessions(self, plan: Plan, before: datetime) -> tuple[int | None, str | None]:
        """End the account's old sessions after the grace period. Returns how many and a warning; never raises."""
        if self._end_sessions_after is None:
            return None, None
        await asyncio.sleep(self._end_sessions_after)
        exempt = sorted(self._options.rules.exempt_applications)
        try:
            async with self._database.connected() as admin:
                ended, warning = await self._database.terminate(admin, plan.username, before, exempt)
        except (RotationError, *DRIVER_ERRORS) as exc:
            ended, warning = 0, text_of(exc)
        if warning is None:
            self._options.listener(Step.ENDED)
        return ended, warning and f"old sessions of {plan.username!r} could not be ended: {warning}"


class _clean_errors:  # noqa: N801 - lower case like contextlib's managers, which cannot be used: they restore frames
    """Drop the frames of every error, since their locals hold secrets, and turn a driver's error into ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if exc is None:
            return
        without_frames(exc)
        if isinstance(exc, RotationError):
            exc.__cause__ = exc.__context__ = None
        elif isinstance(exc, DRIVER_ERRORS):
            exc.__cause__ = exc.__context__ = None
            raise RotationFailed(f"the database failed unexpectedly: {describe(exc)}. Run it again.") from None
