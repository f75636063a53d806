"""What to do when a step fails: continue the rotation, undo what was changed, or raise an error that gives advice."""

from __future__ import annotations

import contextlib
import logging
from typing import NoReturn

from .._login import DRIVER_ERRORS
from ..credentials import Credential, Parity
from ..errors import AiopqrError, RotationError
from .database import Database
from .errors import RotationFailed, RotationUndone, StoreConflict, StoreError
from .plan import Action, Plan
from .stores.store import SecretStore, StoredSecret
from .words import text_of

logger = logging.getLogger("aiopqr")


class Remedies:
    """The remedies for one rotation. ``verify_timeout`` is in seconds."""

    def __init__(self, plan: Plan, database: Database, store: SecretStore, verify_timeout: float) -> None:
        self._plan = plan
        self._name = plan.username
        self._database = database
        self._store = store
        self._verify_timeout = verify_timeout

    async def settle(self, staged: StoredSecret, tried: bool, problem: Exception) -> None:
        """After a failed alteration, find out on a new connection which password works, and continue or undo.

        Returns if the database has the staged password, and raises otherwise.
        """
        if not tried:
            if self._plan.action is Action.ROTATE:  # keep a stage that another run has opened
                await self._give_up(staged, problem)
            if isinstance(problem, AiopqrError):
                raise problem
            raise RotationUndone(f"changing {self._name!r} failed before anything was changed: {text_of(problem)}")
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
                await self._database.alter(admin, stored, self._plan.valid_until and self._plan.valid_before)
                await self._database.commit(admin)
            login = await self._database.login_patiently(stored, self._verify_timeout)
            await self._store.abandon(staged)
        except (RotationError, *DRIVER_ERRORS) as exc:
            failure = text_of(exc)
        else:
            if login.accepted:
                raise RotationUndone(f"changing {self._name!r} was undone: {problem}")
            raise RotationFailed(
                f"{self._name!r} has its stored password back, but cannot log in with it on the applications' path: "
                f"{login.text}. The change was undone because {problem}"
            )
        raise RotationFailed(
            f"changing {self._name!r} failed: {problem}. Undoing it also failed: {failure}. Run it again."
        )

    async def _give_up(self, staged: StoredSecret, problem: Exception) -> None:
        """Close the stage, since nothing was altered. If another rotator has closed it already, that is fine."""
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
        """The account's password after a failed alteration, or None if that cannot be found out.

        If it is the stored one, this closes the stage.
        """
        stored = _stored_of(staged, self._plan.parity)
        with contextlib.suppress(RotationError, *DRIVER_ERRORS):
            # Once this transaction has the lock, the one that failed has ended, committed or not.
            async with self._database.altering(staged.pair):
                if (await self._database.login(stored)).accepted:
                    await self._store.abandon(staged)
                    return stored
                if (await self._database.login(pending_of(staged))).accepted:
                    return staged.pair.pending
        return None


def pending_of(secret: StoredSecret) -> Credential:
    """The staged password. Raises :class:`StoreConflict` if there is none."""
    if secret.pair.pending is None:
        raise StoreConflict("the staged password is gone from the store")
    return secret.pair.pending


def _stored_of(secret: StoredSecret, parity: Parity) -> Credential:
    credential = secret.pair[parity]
    assert credential is not None  # gather() has raised for a degraded pair
    return credential
