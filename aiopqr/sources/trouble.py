"""The kinds of errors that secret stores have in common, distinguished by what the user has to do."""

from __future__ import annotations

import enum


class Trouble(enum.StrEnum):
    """The kind of a store's error. Each store has its own advice for it, which is part of the error's text."""

    NOT_FOUND = "not found"
    NO_VALUE = "no value"
    DELETED = "deleted"
    DENIED = "denied"
    CREDENTIALS = "credentials"  # our own, for the store: an expired token, say, or a session without a role
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
    def is_transient(self) -> bool:
        """Whether the same request may soon succeed, without anybody doing anything."""
        return self in (Trouble.SEALED, Trouble.STANDBY, Trouble.THROTTLED, Trouble.NETWORK, Trouble.OTHER)
