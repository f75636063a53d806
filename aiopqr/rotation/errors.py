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
    """The stored secret is not the one that was read: another rotator, or a person, has changed it in between."""


class StoreNotWritable(StoreError):
    """The store does not take a new password. Nothing was changed: the database gets it only after the store."""


class PathDown(RotationError):
    """An account could not be tried on the applications' path, so nothing is known of its password.

    Nothing was changed, and no gate can be overridden for it: a change could not be verified either.
    """


class RotationRefused(RotationError):
    """Gates refused it; nothing was changed. ``objections`` holds each reason, with its numbers."""

    def __init__(self, objections: Sequence[Objection]) -> None:
        super().__init__("; ".join(f"[{objection.gate}] {objection.text}" for objection in objections))
        self.objections = tuple(objections)


class RotationFailed(RotationError):
    """It was begun and could not be finished. The text says how things stand. Run it again to finish or undo it."""


class RotationUndone(RotationFailed):
    """It failed and was undone: the store and the database are as they were before."""
