"""One rotation, in an order that survives a crash at any point: stage, alter, log in, promote.

At each moment every password that the database can possibly accept is in the store, and only one account is touched:

| killed after | the database accepts | the store has     | the next run                                          |
|--------------|----------------------|-------------------|-------------------------------------------------------|
| nothing      | old                  | old               | rotates                                               |
| stage        | old                  | old, staged new   | alters with the staged password, logs in, promotes    |
| alter        | new                  | old, staged new   | logs in, promotes; pools use the other account, or it |
| log in       | new                  | old, staged new   | the same                                              |
| promote      | new                  | new               | begins a new rotation, when the gates allow it        |

The alteration is undone when the applications' path refuses the new password: the account gets its stored password
back, then the stage is given up, so the same table holds for a crash in the undoing.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import asyncpg

from ..credentials import Credential, CredentialPair, Parity
from ..errors import RotationError, describe
from ..options import non_negative, positive
from .database import AccountConnect, AdminConnect, Database
from .errors import RotationFailed, RotationRefused, RotationUndone, StoreConflict, StoreError
from .gates import Gate, Login, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan, decide
from .stores.store import SecretStore, StoredSecret

logger = logging.getLogger("aiopqr")

# A proxy may take a moment to hear of a new password; servers and proxies lock out after ten failures or so.
_REFUSED_LOGINS = 5
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
_PROMOTE_PAUSES = (0.5, 1.0, 2.0)


class Step(enum.StrEnum):
    """How far a rotation has come."""

    CHECKED = "checked"  # nobody else rotates, and no gate objects
    STAGED = "staged"  # the new password is in the store, beside the old one
    ALTERED = "altered"  # the database has it
    VERIFIED = "verified"  # it logs in on the applications' path
    PROMOTED = "promoted"  # it is the account's own in the store
    ENDED = "ended"  # the account's old sessions are ended


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done. ``ended`` counts the old sessions that were ended; ``warning`` says what is left to do."""

    action: Action
    parity: Parity
    username: str
    changed_at: datetime
    ended: int | None = None
    warning: str | None = None


class Rotator:
    """Changes the password of one account of a pair at a time, so that no pool is ever without a working one.

    ``admin`` and ``verify`` are as for :class:`Database`. ``rules`` tells what pools are out there; the gates follow
    from it. ``end_sessions_after`` (seconds) ends the rotated account's old sessions that long after the rotation; None
    leaves them to the pools' lifetime. ``verify_timeout`` (seconds) bounds the wait for the applications' path to take
    the new password. ``listener`` hears of each step when it is done.
    """

    def __init__(
        self,
        *,
        admin: str | AdminConnect,
        store: SecretStore,
        verify: str | AccountConnect,
        rules: Rules | None = None,
        passwords: PasswordRule | None = None,
        end_sessions_after: float | None = None,
        connect_timeout: float = 10.0,
        verify_timeout: float = 30.0,
        listener: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self._store = store
        self._database = Database(admin, verify, timeout=positive("connect_timeout", connect_timeout))
        self._rules = rules or Rules()
        self._passwords = passwords or PasswordRule()
        if end_sessions_after is not None:
            non_negative("end_sessions_after", end_sessions_after)
        self._end_sessions_after = end_sessions_after
        self._verify_timeout = positive("verify_timeout", verify_timeout)
        self._listener = listener

    async def plan(self, *, account: Parity | None = None, force: Iterable[Gate] = ()) -> Plan:
        """What would be done now, and every objection. Logs in with both accounts, and changes nothing.

        ``account`` chooses the account; without it, the one not changed last is taken. ``force`` names the gates to
        override. Raises :class:`RotationError` when the facts cannot be had; :class:`PathDown`, which is one, when an
        account could not be tried on the applications' path.
        """
        with _reported():
            secret = await self._store.read()
            async with self._database.connected() as admin:
                facts = await self._database.gather(admin, secret)
        return decide(facts, self._rules, account=account, forced=force)

    async def apply(self, plan: Plan) -> Rotation:
        """Do it. Facts are gathered and judged anew while no other rotator can be at work.

        Raises :class:`RotationRefused` when a gate objects or the situation is not the plan's any more, and
        :class:`PathDown` when an account could not be tried on the applications' path: nothing was changed.
        :class:`RotationUndone` when it failed and all is as it was before. :class:`RotationFailed`, or another
        :class:`RotationError`, when it could not be ended: running it again finishes or undoes it, and so it does after
        a cancellation or a crash at any point.
        """
        plan.raise_for_refusals()
        with _reported():
            changed_at = await self._apply(plan)
        logger.info("rotation: the password of %r was changed (%s)", plan.username, plan.action)
        ended, warning = await self._end_sessions(plan, changed_at)
        return Rotation(plan.action, plan.parity, plan.username, changed_at, ended, warning)

    async def _apply(self, plan: Plan) -> datetime:
        pair = (await self._store.read()).pair
        async with self._database.exclusively(pair) as guard:
            staged = await self._altered(plan, pair)
            pending = _pending(staged)
            if plan.action is not Action.FINISH:
                login = await self._logged_in(pending)
                if login.refused:
                    await self._undo(plan, staged, f"the applications' path refuses its new password: {login.text}")
                if not login.accepted:
                    raise RotationFailed(
                        f"{plan.username!r} has its new password, which is staged, but whether applications can log in "
                        f"with it is not known: {login.text}. Run it again to finish."
                    )
            self._listener(Step.VERIFIED)
            changed_at = await self._database.now(guard)
            await self._promote(plan, staged, changed_at)
        self._listener(Step.PROMOTED)
        return changed_at

    async def _altered(self, plan: Plan, pair: CredentialPair) -> StoredSecret:
        """The secret with its stage, whose password the database has when this returns."""
        staged: StoredSecret | None = None
        try:
            # One transaction from the judgement to the alteration: whoever lost the lock in between alters nothing.
            async with self._database.altering(pair) as admin:
                secret = await self._checked(admin, plan, pair)
                self._listener(Step.CHECKED)
                if plan.action is Action.FINISH:
                    return secret
                staged = await self._staged(plan, secret)
                await self._database.alter(admin, _pending(staged))
        except Exception as exc:
            if staged is None:
                raise
            problem = str(exc) if isinstance(exc, RotationError) else describe(exc)
        else:
            self._listener(Step.ALTERED)
            return staged
        if await self._is_settled(plan, staged):
            raise RotationUndone(f"changing {plan.username!r} failed and was undone: {problem}")
        raise RotationFailed(
            f"changing {plan.username!r} failed: {problem}. The new password is staged. Run it again to finish or undo."
        )

    async def _checked(self, admin: Any, plan: Plan, pair: CredentialPair) -> StoredSecret:
        """The store's secret, if all is still as it was planned."""
        secret = await self._store.read()
        facts = await self._database.gather(admin, secret)
        now = decide(facts, self._rules, account=plan.account, forced=plan.forced)
        now.raise_for_refusals()
        same = (now.action, now.username, now.abandons) == (plan.action, plan.username, plan.abandons)
        if not same or _usernames(secret.pair) != _usernames(pair):
            text = f"the situation has changed since the plan: now it is to {now.action} {now.username!r}"
            raise RotationRefused([Objection(Gate.IN_PROGRESS, text)])
        return secret

    async def _staged(self, plan: Plan, secret: StoredSecret) -> StoredSecret:
        """The secret with a stage of this account: the one that is open, or a new one."""
        if plan.abandons is not None:
            secret = await self._store.abandon(secret)
        if plan.action is Action.ROTATE:
            secret = await self._store.stage(secret, Credential(plan.username, self._passwords.generate()))
            self._listener(Step.STAGED)
        return secret

    async def _logged_in(self, credential: Credential) -> Login:
        """The outcome of logging in, for as long as it may still get better."""
        clock = asyncio.get_running_loop()
        deadline, pause, refusals = clock.time() + self._verify_timeout, _FIRST_PAUSE, 0
        while True:
            login = await self._database.login(credential)
            refusals += login.refused
            if login.accepted or refusals >= _REFUSED_LOGINS or clock.time() + pause > deadline:
                return login
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _promote(self, plan: Plan, staged: StoredSecret, changed_at: datetime) -> None:
        """Make the staged password the account's own. A store that fails is tried again: the database has it."""
        pending = _pending(staged)
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
                if staged.pair.pending is None and staged.pair[plan.parity] == pending:
                    return  # it happened all the same, or another rotator did it
                if staged.pair.pending != pending:
                    break
        raise RotationFailed(
            f"{plan.username!r} has its new password, but the store did not take it: {problem}. Run it again to finish."
        )

    async def _is_settled(self, plan: Plan, staged: StoredSecret) -> bool:
        """After an alteration that failed: whether the account has its stored password, and the stage is given up."""
        with contextlib.suppress(RotationError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            # The transaction that failed has ended when this one has the lock, whichever way it went.
            async with self._database.altering(staged.pair):
                if (await self._database.login(_stored(staged, plan.parity))).accepted:
                    await self._store.abandon(staged)
                    return True
        return False

    async def _undo(self, plan: Plan, staged: StoredSecret, problem: str) -> NoReturn:
        """Give the account its stored password back, in the database and then in the store."""
        stored = _stored(staged, plan.parity)
        try:
            async with self._database.altering(staged.pair) as admin:
                await self._database.alter(admin, stored)
            login = await self._logged_in(stored)
            await self._store.abandon(staged)
        except (RotationError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
            failure = str(exc) if isinstance(exc, RotationError) else describe(exc)
        else:
            if login.accepted:
                raise RotationUndone(f"changing {plan.username!r} was undone: {problem}")
            raise RotationFailed(
                f"{plan.username!r} has its stored password back, but does not log in with it on the applications' "
                f"path: {login.text}. Before: {problem}"
            )
        raise RotationFailed(
            f"changing {plan.username!r} failed: {problem}. Undoing it failed, too: {failure}. Run it again."
        )

    async def _end_sessions(self, plan: Plan, before: datetime) -> tuple[int | None, str | None]:
        """End the account's old sessions after the grace period; how many, and what went wrong. Never raises."""
        if self._end_sessions_after is None:
            return None, None
        await asyncio.sleep(self._end_sessions_after)
        try:
            async with self._database.connected() as admin:
                ended, warning = await self._database.terminate(
                    admin, plan.username, before, sorted(self._rules.exempt_applications)
                )
        except RotationError as exc:
            ended, warning = 0, str(exc)
        if warning is None:
            self._listener(Step.ENDED)
        return ended, warning and f"old sessions of {plan.username!r} could not be ended: {warning}"


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Let a driver's error leave as one of ours, without the frames, and the statement, that it holds."""
    problem = ""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        problem = describe(exc)
    if problem:
        raise RotationFailed(f"the database did not answer as it should: {problem}. Run it again.")


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
