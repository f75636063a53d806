"""The errors of a rotation, distinguished by what the operator has to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import RotationError

if TYPE_CHECKING:
    from .gates import Objection


class StoreError(RotationError):
    """The secret store could not be read or written. The text is safe to log."""


class StoreConflict(StoreError):
    """The stored secret is no longer the one that was read, because another rotator or a person has changed it."""


class StoreNotWritable(StoreError):
    """The store does not accept a new password. Nothing was changed, since the store comes before the database."""


class PathDown(RotationError):
    """A login over the applications' path failed without a refusal, so it is unknown whether the password works.

    Nothing was changed. No flag overrides this, because a change could not be verified either.
    """


class RotationRefused(RotationError):
    """One or more gates object, and nothing was changed. ``objections`` lists the objections, with their numbers."""

    def __init__(self, objections: Sequence[Objection]) -> None:
        super().__init__("; ".join(f"[{objection.gate}] {objection.text}" for objection in objections))
        self.objections = tuple(objections)


class RotationFailed(RotationError):
    """The rotation failed midway. The text says how far it got. Run it again to finish or undo it."""


class RotationUndone(RotationFailed):
    """The rotation failed and was undone. The store and the database are as they were before."""
