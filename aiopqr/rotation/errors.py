"""What goes wrong in a rotation, told apart by what the operator has to do next."""

from __future__ import annotations

from ..errors import RotationError


class StoreError(RotationError):
    """The secret store could not be read or written. The text is safe to log."""


class StoreConflict(StoreError):
    """The stored secret is not the one that was read: another rotator, or a person, has changed it in between."""
