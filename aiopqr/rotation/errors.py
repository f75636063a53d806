"""What can go wrong in a rotation, by what the operator has to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import RotationError

if TYPE_CHECKING:
    from .gates import Objection


class StoreError(RotationError):
    """The secret store could not be read or written. The text is safe to log."""


class StoreConflict(StoreError):
    """The stored secret is no longer the one that was read: another rotator or a person has changed it."""


class StoreNotWritable(StoreError):
    """The store does not accept a new password. Nothing was changed, since the store comes before the database."""


class PathDown(RotationError):
    """An account could not be tried on the applications' path, so nothing is known about its password.

    Nothing was changed. No flag overrides this, because a change could not be verified either.
    """


class RotationRefused(RotationError):
    """One or more gates object; nothing was changed. ``objections`` has each of them, with its numbers."""

    def __init__(self, objections: Sequence[Objection]) -> None:
        super().__init__("; ".join(f"[{objection.gate}] {objection.text}" for objection in objections))
        self.objections = tuple(objections)


class RotationFailed(RotationError):
    """It failed midway. The text says how far it got; running it again finishes or undoes it."""


class RotationUndone(RotationFailed):
    """It failed and was undone: the store and the database are as before."""
