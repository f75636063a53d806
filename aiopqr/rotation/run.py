"""One rotation in progress, step by step.

A stage announces the change: pools that see it use the other account for new connections, so no login is refused when
the password changes. If altering the account fails, ``remedies`` finds out on a new connection whether the change has
happened anyway, or undoes it. A promotion that fails is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .._login import DRIVER_ERRORS
from ..credentials import Credential, CredentialPair
from ..errors import RotationError, without_frames
from .announcing import Announcing, announced_longer, announcement_left, unaware
from .database import Database
from .errors import RotationFailed, RotationRefused, StoreConflict, StoreError, StoreNotWritable
from .gates import Gate, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan, decide
from .remedies import Remedies, give_up, pending_of
from .stores.store import SecretStore, StoredSecret
from .words import text_of

logger = logging.getLogger("aiopqr")

_PROMOTE_PAUSES = (0.5, 1.0, 2.0)


class Step(enum.StrEnum):
    """A step of a rotation that is done."""

    CHECKED = "checked"  # all gates passed, and no other rotation is running
    STAGED = "staged"  # the new password is in the store, next to the old one
    ANNOUNCED = "announced"  # pools have had time to see that and to switch to the other account
    ALTERED = "altered"  # the database has the new password
    VERIFIED = "verified"  # a login with it succeeded over the applications' path
    PROMOTED = "promoted"  # the store has it as the account's current password
    ENDED = "ended"  # the account's old sessions have been ended


@dataclass(frozen=True, slots=True)
class RotationOptions:
    """The options of a rotation; see :class:`Rotator`."""

    rules: Rules
    passwords: PasswordRule
    announce: float
    verify_timeout: float
    listener: Callable[[Step], None]
    on_announcing: Callable[[Announcing], None]


@dataclass(frozen=True, slots=True)
class _Alteration:
    """The outcome of altering the account.

    Without a ``problem``, the database has the new password. With one, it may have the new password if ``tried`` is
    True, and certainly does not have it otherwise.
    """

    tried: bool
    problem: Exception | None = None


class Run:
    """One rotation in progress."""

    def __init__(self, plan: Plan, database: Database, store: SecretStore, options: RotationOptions) -> None:
        self._plan = plan
        self._name = plan.username
        self._database = database
        self._store = store
        self._options = options

    async def rotate(self) -> datetime:
        """Do all steps except ending old sessions. Returns when the account was changed."""
        pair, done = (await self._store.read()).pair, self._options.listener
        async with self._database.exclusively(pair) as guard:
            remedies = Remedies(self._plan, self._database, self._store, guard, self._options.verify_timeout)
            staged = await self._stage(pair)
            if self._plan.action is not Action.FINISH:
                waited = await self._announce(staged)
                alteration = await self._alter(staged, judge=waited)
                if not alteration.tried and isinstance(alteration.problem, DRIVER_ERRORS):
                    alteration = await self._alter(staged, judge=waited)  # the admin's session was lost: use a new one
                if alteration.problem is not None:
                    await remedies.settle(staged, alteration.tried, alteration.problem)
                done(Step.ALTERED)
                await self._verify(staged, remedies)
            done(Step.VERIFIED)
            changed_at = await self._time(guard)
            await self._promote(staged, changed_at)
            if guard.is_closed():
                logger.warning("rotation: the admin's connection was lost midway; a new one finished the rotation")
        done(Step.PROMOTED)
        return changed_at

    async def _stage(self, pair: CredentialPair) -> StoredSecret:
        """Return the secret with this account's stage, the open one or a new one. Raises if the plan is outdated."""
        plan, done = self._plan, self._options.listener
        async with self._database.altering(pair) as admin:
            secret = await self._store.read()
            now = await self._judge(admin, secret)
            same = (now.action, now.username, now.abandons) == (plan.action, plan.username, plan.abandons)
            if not same or _usernames(secret.pair) != _usernames(pair):
                text = f"the situation has changed since the plan was made: now it is to {now.action} {now.username!r}"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
            done(Step.CHECKED)
            if plan.abandons is not None:
                secret = await self._abandon(admin, secret)
            if plan.action is Action.ROTATE:
                secret = await self._open_stage(secret)
                done(Step.STAGED)
        return secret

    async def _abandon(self, admin: Any, secret: StoredSecret) -> StoredSecret:
        """Give up the other account's stage. Raises :class:`RotationFailed` if that failed; it may still be open."""
        try:
            return await give_up(self._database, self._store, admin, secret)
        except StoreConflict:
            raise
        except (RotationError, *DRIVER_ERRORS) as exc:
            problem = text_of(exc)
        raise RotationFailed(
            f"the unfinished rotation of {self._plan.abandons!r} could not be given up, so its new password may still "
            f"be staged: {problem}. Nothing else was changed. Run it again, or without --account to finish that one."
        )

    async def _open_stage(self, secret: StoredSecret) -> StoredSecret:
        """Stage a new password. Raises :class:`StoreNotWritable` if that failed and the store is still as it was."""
        try:
            return await self._store.stage(secret, Credential(self._name, self._options.passwords.generate()))
        except StoreConflict:
            raise
        except StoreError as exc:
            problem = str(exc)
        if (await self._store.read()).revision == secret.revision:
            raise StoreNotWritable(f"the store does not accept a new password: {problem}. No password was changed")
        raise RotationFailed(
            f"the store may have accepted the new password of {self._name!r}: {problem}. Run it again."
        )

    async def _judge(self, admin: Any, secret: StoredSecret) -> Plan:
        """Make the plan again with current facts. Raises :class:`RotationRefused` if a gate objects."""
        facts = await self._database.gather(admin, secret)
        now = decide(facts, self._options.rules, account=self._plan.account, forced=self._plan.forced)
        now.raise_for_refusals()
        return now

    async def _announce(self, staged: StoredSecret) -> bool:
        """Give pools time to see the stage and to step aside. Returns whether it had to wait."""
        left = announcement_left(staged, self._options.announce)
        if left <= 0:
            return False
        self._options.on_announcing(Announcing(left, self._name))
        await asyncio.sleep(left)
        if late := await unaware(self._database, staged, self._options.announce, self._options.rules):
            # Not a gate, because a pool that does not see the stage has at most one failed login.
            again = Announcing(announced_longer(staged, self._options.announce), self._name, late)
            logger.warning("rotation: %s", again)
            self._options.on_announcing(again)
            await asyncio.sleep(again.seconds)
        self._options.listener(Step.ANNOUNCED)
        return True

    async def _alter(self, staged: StoredSecret, *, judge: bool) -> _Alteration:
        """Give the account its staged password. With ``judge``, first check again that it may be changed."""
        plan, tried = self._plan, False
        try:
            # The check and the alteration are one transaction, so a rotator that loses the lock in between alters
            # nothing.
            async with self._database.altering(staged.pair) as admin:
                if (await self._store.read()).revision != staged.revision:
                    raise StoreConflict("the stored secret has changed since the new password was staged")
                if judge:
                    plan = await self._judge(admin, staged)
                await self._database.alter(admin, pending_of(staged), plan.valid_until)
                tried = True  # until here, the server rolls everything back
                await self._database.commit(admin)
        except Exception as exc:
            return _Alteration(tried, without_frames(exc))
        return _Alteration(tried)

    async def _verify(self, staged: StoredSecret, remedies: Remedies) -> None:
        """Log in with the new password over the applications' path. Undoes the change if it is refused."""
        login = await self._database.login_patiently(pending_of(staged), self._options.verify_timeout)
        if login.refused:
            await remedies.undo(staged, f"the applications' path refuses its new password: {login.text}")
        if not login.accepted:
            raise RotationFailed(
                f"{self._name!r} has its new password, which is also staged in the store, but it is unknown whether "
                f"applications can log in with it: {login.text}. Run it again to finish."
            )

    async def _time(self, guard: Any) -> datetime:
        """The time of the change. If the database cannot be asked, use our clock, since the store must be updated."""
        try:
            return await self._database.time(guard)
        except (RotationError, *DRIVER_ERRORS) as exc:
            logger.warning(
                "rotation: the database did not report its time, so this machine's clock dates the change: %s",
                text_of(exc),
            )
            return datetime.now(UTC)

    async def _promote(self, staged: StoredSecret, changed_at: datetime) -> None:
        """Make the staged password the current one. Retries if the store fails, since the database has it already."""
        pending, parity = pending_of(staged), self._plan.parity
        for pause in (*_PROMOTE_PAUSES, None):
            try:
                await self._store.promote(staged, changed_at=changed_at)
                return
            except StoreError as exc:
                problem = str(exc)
            if pause is None:
                break
            await asyncio.sleep(pause)
            with contextlib.suppress(StoreError):
                staged = await self._store.read()
                if staged.pair.pending is None and staged.pair[parity] == pending:
                    return  # it succeeded after all, or another rotator did it
                if staged.pair.pending != pending:
                    break
        raise RotationFailed(
            f"{self._name!r} has its new password, but the store did not accept it: {problem}. Run it again to finish."
        )


def _usernames(pair: CredentialPair) -> tuple[str | None, ...]:
    return tuple(credential.username if credential else None for credential in (pair.odd, pair.even))
