"""One rotation in progress: how each of its steps is done, and what is made of a step that fails.

A stage announces the change: pools that see it use the other account for new connections, so nobody is refused when the
password changes. What can fail in the database returns an outcome, since each has a way to go on: an alteration is
undone, or found to be in force, on a new connection; a refused login is undone; a promotion is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from .._login import DRIVER_ERRORS
from ..credentials import Credential, CredentialPair, Parity
from ..errors import AiopqrError, RotationError, without_frames
from .announcing import Announcing, announced_longer, announcement_left, unheard
from .database import Database
from .errors import RotationFailed, RotationRefused, RotationUndone, StoreConflict, StoreError, StoreNotWritable
from .gates import Gate, Login, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan, decide
from .stores.store import SecretStore, StoredSecret
from .words import text_of

logger = logging.getLogger("aiopqr")

# A proxy may take a moment to hear of a new password; servers and proxies lock out after ten failures or so.
_REFUSED_LOGINS = 5
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
_PROMOTE_PAUSES = (0.5, 1.0, 2.0)


class Step(enum.StrEnum):
    """How far a rotation has come."""

    CHECKED = "checked"  # nobody else rotates, and no gate objects
    STAGED = "staged"  # the new password is in the store, next to the old one
    ANNOUNCED = "announced"  # pools have had the time to see it and to use the other account
    ALTERED = "altered"  # the database has it
    VERIFIED = "verified"  # it logs in on the applications' path
    PROMOTED = "promoted"  # it is the account's own in the store
    ENDED = "ended"  # the account's old sessions are ended


@dataclass(frozen=True, slots=True)
class Settings:
    """What a rotation is to do, as the :class:`Rotator` was told."""

    rules: Rules
    passwords: PasswordRule
    announce: float
    verify_timeout: float
    listener: Callable[[Step], None]
    on_announcing: Callable[[Announcing], None]


@dataclass(frozen=True, slots=True)
class _Alteration:
    """The outcome of altering the account. Without a ``problem`` the database has the new password.

    With one, and ``tried``, it may have it.
    """

    tried: bool
    problem: Exception | None = None


class Run:
    """One rotation in progress, by its plan."""

    def __init__(self, plan: Plan, database: Database, store: SecretStore, settings: Settings) -> None:
        self._plan = plan
        self._name = plan.username
        self._database = database
        self._store = store
        self._settings = settings

    async def rotate(self) -> datetime:
        """All steps but the ending of sessions; when the account was changed."""
        pair, tell = (await self._store.read()).pair, self._settings.listener
        async with self._database.exclusively(pair) as guard:
            staged = await self._stage(pair)
            if self._plan.action is not Action.FINISH:
                waited = await self._announce(staged)
                alteration = await self._alter(staged, judge=waited)
                if not alteration.tried and isinstance(alteration.problem, DRIVER_ERRORS):
                    alteration = await self._alter(staged, judge=waited)  # the admin's session was lost: a new one
                if alteration.problem is not None:
                    await self._settle(staged, alteration.tried, alteration.problem)
                tell(Step.ALTERED)
                await self._verify(staged)
            tell(Step.VERIFIED)
            changed_at = await self._time(guard)
            await self._promote(staged, changed_at)
            if guard.is_closed():
                logger.warning("rotation: the admin's session was lost on the way; a new one has finished the rotation")
        tell(Step.PROMOTED)
        return changed_at

    async def _stage(self, pair: CredentialPair) -> StoredSecret:
        """The secret with a stage of this account, the one that is open or a new one, if all is as it was planned."""
        plan, tell = self._plan, self._settings.listener
        async with self._database.altering(pair) as admin:
            secret = await self._store.read()
            now = await self._judge(admin, secret)
            same = (now.action, now.username, now.abandons) == (plan.action, plan.username, plan.abandons)
            if not same or _usernames(secret.pair) != _usernames(pair):
                text = f"the situation has changed since the plan: now it is to {now.action} {now.username!r}"
                raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
            tell(Step.CHECKED)
            if plan.abandons is not None:
                secret = await self._store.abandon(secret)
            if plan.action is Action.ROTATE:
                secret = await self._open_stage(secret)
                tell(Step.STAGED)
        return secret

    async def _open_stage(self, secret: StoredSecret) -> StoredSecret:
        """The secret with a new password staged. Raises :class:`StoreNotWritable` when the store still is as it was."""
        try:
            return await self._store.stage(secret, Credential(self._name, self._settings.passwords.generate()))
        except StoreConflict:
            raise
        except StoreError as exc:
            problem = str(exc)
        if (await self._store.read()).revision == secret.revision:
            raise StoreNotWritable(f"the store does not take a new password: {problem}. No password was changed")
        raise RotationFailed(f"the store may have taken the new password of {self._name!r}: {problem}. Run it again.")

    async def _judge(self, admin: Any, secret: StoredSecret) -> Plan:
        """The plan as it would be now. Raises :class:`RotationRefused` when a gate objects."""
        facts = await self._database.gather(admin, secret)
        now = decide(facts, self._settings.rules, account=self._plan.account, forced=self._plan.forced)
        now.raise_for_refusals()
        return now

    async def _announce(self, staged: StoredSecret) -> bool:
        """Give pools the time to see the stage and to step aside. Whether there was anything to wait for."""
        left = announcement_left(staged, self._settings.announce)
        if left <= 0:
            return False
        self._settings.on_announcing(Announcing(left, self._name))
        await asyncio.sleep(left)
        if late := await unheard(self._database, staged, self._settings.announce, self._settings.rules):
            # A courtesy, not a gate: a pool that does not hear loses no more than a failed login.
            again = Announcing(announced_longer(staged, self._settings.announce), self._name, late)
            logger.warning("rotation: %s", again)
            self._settings.on_announcing(again)
            await asyncio.sleep(again.seconds)
        self._settings.listener(Step.ANNOUNCED)
        return True

    async def _alter(self, staged: StoredSecret, *, judge: bool) -> _Alteration:
        """Give the account its staged password. With ``judge``, judge again first whether it may be changed."""
        plan, tried = self._plan, False
        try:
            # One transaction from the judgement to the alteration: whoever lost the lock in between alters nothing.
            async with self._database.altering(staged.pair) as admin:
                if (await self._store.read()).revision != staged.revision:
                    raise StoreConflict("the stored secret has changed since the new password was staged")
                if judge:
                    plan = await self._judge(admin, staged)
                tried = True
                await self._database.alter(admin, _pending(staged), plan.valid_until)
                await self._database.commit(admin)
        except Exception as exc:
            return _Alteration(tried, without_frames(exc))
        return _Alteration(tried)

    async def _settle(self, staged: StoredSecret, tried: bool, problem: Exception) -> None:
        """After an alteration that failed: find out what is in force, on a new connection, and go on or undo.

        Returns when the database has the staged password, and raises otherwise.
        """
        if not tried:
            if self._plan.action is Action.ROTATE:  # what another run had staged stays as it was
                await self._give_up(staged, problem)
            if isinstance(problem, AiopqrError):
                raise problem
            raise RotationUndone(f"changing {self._name!r} failed before anything was changed: {text_of(problem)}")
        found = await self._in_force(staged)
        if found == staged.pair.pending:
            logger.warning("rotation: the new password of %r is in force, though: %s", self._name, text_of(problem))
        elif found is not None:
            raise RotationUndone(f"changing {self._name!r} failed and was undone: {text_of(problem)}")
        else:
            raise RotationFailed(
                f"changing {self._name!r} failed: {text_of(problem)}. The new password is staged. Run it again to "
                "finish or undo."
            )

    async def _give_up(self, staged: StoredSecret, problem: Exception) -> None:
        """Close the stage: nothing was altered. Another rotator may have done it, and goes on with its own."""
        try:
            await self._store.abandon(staged)
            return
        except StoreConflict:
            return
        except StoreError as exc:
            failure = str(exc)
        raise RotationFailed(
            f"changing {self._name!r} was refused: {text_of(problem)}. Its new password is staged, and cannot be given "
            f"up: {failure}. Run it again."
        )

    async def _in_force(self, staged: StoredSecret) -> Credential | None:
        """The account's password after an alteration that failed; None where that cannot be found out.

        When it is the stored one, the stage is closed.
        """
        stored = _stored(staged, self._plan.parity)
        with contextlib.suppress(RotationError, *DRIVER_ERRORS):
            # The transaction that failed has ended when this one has the lock, whichever way it went.
            async with self._database.altering(staged.pair):
                if (await self._database.login(stored)).accepted:
                    await self._store.abandon(staged)
                    return stored
                if (await self._database.login(_pending(staged))).accepted:
                    return staged.pair.pending
        return None

    async def _verify(self, staged: StoredSecret) -> None:
        """Log in with the new password on the applications' path. Undoes the change where it is refused."""
        login = await self._log_in(_pending(staged))
        if login.refused:
            await self._undo(staged, f"the applications' path refuses its new password: {login.text}")
        if not login.accepted:
            raise RotationFailed(
                f"{self._name!r} has its new password, which is staged, but whether applications can log in with it is "
                f"not known: {login.text}. Run it again to finish."
            )

    async def _log_in(self, credential: Credential) -> Login:
        return await patient_login(self._database, credential, self._settings.verify_timeout)

    async def _undo(self, staged: StoredSecret, problem: str) -> NoReturn:
        """Give the account its stored password back, in the database and then in the store."""
        stored = _stored(staged, self._plan.parity)
        try:
            async with self._database.altering(staged.pair) as admin:
                await self._database.alter(admin, stored, self._plan.valid_until and self._plan.valid_before)
                await self._database.commit(admin)
            login = await self._log_in(stored)
            await self._store.abandon(staged)
        except (RotationError, *DRIVER_ERRORS) as exc:
            failure = text_of(exc)
        else:
            if login.accepted:
                raise RotationUndone(f"changing {self._name!r} was undone: {problem}")
            raise RotationFailed(
                f"{self._name!r} has its stored password back, but does not log in with it on the applications' path: "
                f"{login.text}. Before: {problem}"
            )
        raise RotationFailed(
            f"changing {self._name!r} failed: {problem}. Undoing it failed, too: {failure}. Run it again."
        )

    async def _time(self, guard: Any) -> datetime:
        """The time of the change. The store must have the password even if the database cannot be asked any more."""
        try:
            return await self._database.time(guard)
        except (RotationError, *DRIVER_ERRORS) as exc:
            logger.warning("rotation: the change is dated by this machine's clock: %s", text_of(exc))
            return datetime.now(UTC)

    async def _promote(self, staged: StoredSecret, changed_at: datetime) -> None:
        """Make the staged password the account's own. A store that fails is tried again: the database has it."""
        pending, parity = _pending(staged), self._plan.parity
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
                    return  # it happened all the same, or another rotator did it
                if staged.pair.pending != pending:
                    break
        raise RotationFailed(
            f"{self._name!r} has its new password, but the store did not take it: {problem}. Run it again to finish."
        )


async def patient_login(database: Database, credential: Credential, timeout: float) -> Login:
    """The outcome of logging in, after as many tries as may still make it better within ``timeout`` seconds."""
    clock = asyncio.get_running_loop()
    deadline, pause, refusals = clock.time() + timeout, _FIRST_PAUSE, 0
    while True:
        login = await database.login(credential)
        refusals += login.refused
        if login.accepted or refusals >= _REFUSED_LOGINS or clock.time() + pause > deadline:
            return login
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _pending(secret: StoredSecret) -> Credential:
    if secret.pair.pending is None:
        raise StoreConflict("the staged password is gone from the store")
    return secret.pair.pending


def _stored(secret: StoredSecret, parity: Parity) -> Credential:
    credential = secret.pair[parity]
    assert credential is not None  # gathering facts refuses a degraded pair
    return credential


def _usernames(pair: CredentialPair) -> tuple[str | None, ...]:
    return tuple(credential.username if credential else None for credential in (pair.odd, pair.even))
