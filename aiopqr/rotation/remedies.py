"""What to do when a step fails: continue the rotation, undo what was changed, or raise an error that gives advice."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from typing import Any, NoReturn

from .._login import DRIVER_ERRORS
from ..credentials import Credential, Parity
from ..errors import RotationError
from .database import Database
from .errors import PathDown, RotationFailed, RotationRefused, RotationUndone, StoreConflict
from .plan import Action, Plan
from .stores.store import SecretStore, StoredSecret
from .words import text_of

logger = logging.getLogger("aiopqr")


class Remedies:
    """The remedies for one rotation. ``guard`` holds its lock, if it is not lost. ``verify_timeout`` is in seconds."""

    def __init__(self, plan: Plan, database: Database, store: SecretStore, guard: Any, verify_timeout: float) -> None:
        self._plan = plan
        self._name = plan.username
        self._database = database
        self._store = store
        self._guard = guard
        self._verify_timeout = verify_timeout

    async def settle(self, staged: StoredSecret, tried: bool, problem: Exception) -> None:
        """After a failed alteration, find out on a new connection which password works, and continue or undo.

        Returns if the database has the staged password, and raises otherwise.
        """
        if not tried:
            opened_here = self._plan.action is Action.ROTATE
            if opened_here:  # keep a stage that another run has opened: that run may have altered the account
                await self._close(staged, problem)
            if isinstance(problem, RotationRefused | PathDown | StoreConflict):
                raise problem
            how = "and was undone" if opened_here else "before it was altered, and its new password is still staged"
            raise RotationUndone(f"changing {self._name!r} failed {how}: {text_of(problem)}")
        found = await self._in_force(staged)
        if found == staged.pair.pending:
            logger.warning(
                "rotation: changing the password of %r raised an error, but the new password is in force: %s",
                self._name,
                text_of(problem),
            )
        elif found is not None:
            raise RotationUndone(f"changing {self._name!r} failed and was undone: {text_of(problem)}")
        else:
            raise RotationFailed(
                f"changing {self._name!r} failed: {text_of(problem)}. The new password is staged. Run it again to "
                "finish or undo it."
            )

    async def undo(self, staged: StoredSecret, problem: str) -> NoReturn:
        """Give the account its stored password back: in the database, and then in the store by closing the stage."""
        stored = _stored_of(staged, self._plan.parity)
        try:
            async with self._database.altering(staged.pair) as admin:
                await self._take_back(admin, staged)
            login = await self._database.login_patiently(stored, self._verify_timeout)
        except (RotationError, *DRIVER_ERRORS) as exc:
            failure = text_of(exc)
        else:
            if login.accepted:
                raise RotationUndone(f"changing {self._name!r} was undone: {problem}")
            raise RotationFailed(
                f"{self._name!r} has its stored password back, but cannot log in with it over the applications' path: "
                f"{login.text}. The change was undone because {problem}"
            )
        raise RotationFailed(
            f"changing {self._name!r} failed: {problem}. Undoing it also failed: {failure}. Run it again."
        )

    async def _close(self, staged: StoredSecret, problem: Exception) -> None:
        """Close the stage that this run has opened. If another rotator has closed it already, that is fine."""
        try:
            if await self._database.is_held(self._guard):  # so nobody has altered the account
                await self._store.abandon(staged)
            else:
                async with self._database.altering(staged.pair) as admin:
                    await self._take_back(admin, staged)
            return
        except StoreConflict:
            return
        except (RotationError, *DRIVER_ERRORS) as exc:
            failure = text_of(exc)
        raise RotationFailed(
            f"changing {self._name!r} failed: {text_of(problem)}. Its new password is staged, and cannot be given "
            f"up: {failure}. Run it again."
        )

    async def _in_force(self, staged: StoredSecret) -> Credential | None:
        """The account's password after a failed alteration, or None if that cannot be found out.

        Only the staged one can be found by a login, since a proxy may accept the stored one long after the database
        has another. So if the stored one is accepted, the account gets it back, and the stage is closed.
        """
        stored = _stored_of(staged, self._plan.parity)
        with contextlib.suppress(RotationError, *DRIVER_ERRORS):
            # Once this transaction has the lock, the one that failed has ended, committed or not.
            async with self._database.altering(staged.pair) as admin:
                if (await self._database.login(pending_of(staged))).accepted:
                    return staged.pair.pending
                if (await self._database.login(stored)).accepted:
                    await self._take_back(admin, staged)
                    return stored
        return None

    async def _take_back(self, admin: Any, staged: StoredSecret) -> None:
        """Give up the stage, unless another rotator is at work. VALID UNTIL becomes what it was before."""
        async with self._database.still_exclusively(self._guard, staged.pair):
            valid_until = self._plan.valid_until and self._plan.valid_before
            await give_up(self._database, self._store, admin, staged, valid_until)


async def give_up(
    database: Database, store: SecretStore, admin: Any, staged: StoredSecret, valid_until: datetime | None = None
) -> StoredSecret:
    """Close a stage that the database may have: the account gets its stored password back, and then the store drops it.

    ``admin`` is in :meth:`Database.altering`, and stays there until the store has changed, so nobody can use the stage
    in between. If the account cannot be altered, this raises and the stage stays, because then it may have the only
    password that the database accepts. No login can show that it does not.
    """
    if (await store.read()).revision != staged.revision:
        raise StoreConflict("the stored secret has changed since the new password was staged")
    parity = staged.pair.pending_parity
    assert parity is not None
    await database.alter(admin, _stored_of(staged, parity), valid_until)
    await database.commit_and_go_on(admin, staged.pair)
    return await store.abandon(staged)


def pending_of(secret: StoredSecret) -> Credential:
    """The staged password. Raises :class:`StoreConflict` if there is none."""
    if secret.pair.pending is None:
        raise StoreConflict("the staged password is gone from the store")
    return secret.pair.pending


def _stored_of(secret: StoredSecret, parity: Parity) -> Credential:
    credential = secret.pair[parity]
    assert credential is not None  # gather() has raised for a degraded pair
    return credential
