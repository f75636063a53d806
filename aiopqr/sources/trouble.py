"""What can go wrong with a request to a secret store, by what there is to do. All stores use these names."""

from __future__ import annotations

import enum


class Trouble(enum.StrEnum):
    """The kind of a store's error. Each store's own advice says what to do about it."""

    NOT_FOUND = "not found"
    NO_VALUE = "no value"
    DELETED = "deleted"
    DENIED = "denied"
    CREDENTIALS = "credentials"  # the store does not accept our own: a token that has expired, a session without a role
    KMS = "kms"
    SEALED = "sealed"
    STANDBY = "standby"
    THROTTLED = "throttled"
    NETWORK = "network"
    TLS = "tls"
    CONFLICT = "conflict"
    INVALID = "invalid"
    OTHER = "other"

    @property
    def is_passing(self) -> bool:
        """Whether it may be over by itself in a moment."""
        return self in (Trouble.SEALED, Trouble.STANDBY, Trouble.THROTTLED, Trouble.NETWORK, Trouble.OTHER)
