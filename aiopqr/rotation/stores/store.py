"""What a rotator needs from a secret store. You can write a store of your own.

A stored secret is a pair and, during a rotation, one *staged* password: a newer password of one of the two accounts,
which the database may or may not accept yet. It is staged before the database is touched, so after a crash the store
has every password that the database may accept.

The store must protect rotators from each other: each change names the revision on which it is based, and the store
refuses the change if it no longer holds that revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from ...credentials import Credential, CredentialPair, Parity

#: The keys in a stored secret that belong to the rotator. All others keep their values and their order.
OWN_KEYS = (
    "odd_username",
    "odd_password",
    "even_username",
    "even_password",
    "active_credential",
    "odd_changed_at",
    "even_changed_at",
    "pending_username",
    "pending_password",
    "pending_staged_at",
)


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A secret as a store held it at one moment.

    ``pair.pending`` is the staged password, if there is one. ``odd_changed_at`` and ``even_changed_at`` are when each
    account's password was last changed, and ``staged_at`` when the password was staged, as aware datetimes; None means
    unknown. ``other`` holds the secret's other keys, for the store's own use. ``revision`` is opaque: equal revisions
    mean equal secrets, and every change makes a new one.
    """

    pair: CredentialPair
    revision: str = field(repr=False)
    odd_changed_at: datetime | None = None
    even_changed_at: datetime | None = None
    staged_at: datetime | None = None
    other: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for key in ("odd_changed_at", "even_changed_at", "staged_at"):
            value: datetime | None = getattr(self, key)
            if value is not None and value.utcoffset() is None:
                raise ValueError(f"{key} must be an aware datetime")

    def changed_at(self, parity: Parity) -> datetime | None:
        """When the account's password was last changed; None means unknown."""
        return self.odd_changed_at if parity is Parity.ODD else self.even_changed_at


@runtime_checkable
class SecretStore(Protocol):
    """The place where the pair is kept, and changed in steps that survive a crash.

    Every method raises :class:`StoreError`, with a text that shows no secret, if the store cannot do it. The three
    methods that change something take the :class:`StoredSecret` on which the change is based, and return the secret
    after the change, with its new revision. If the store no longer holds ``secret.revision``, they raise
    :class:`StoreConflict` and change nothing. Of two rotators with the same revision, at most one succeeds. If the
    service has no atomic compare-and-set, the store must write, read back, and raise :class:`StoreConflict` if it does
    not find its own change.

    A change is durable when its method returns. If the method is cancelled, or fails with anything but StoreConflict,
    the change may have happened or not. The rotator then reads again.

    A store may also be an async context manager, which the command line enters.

    The store for AWS Secrets Manager is an example. ``read`` reads AWSCURRENT and AWSPENDING, consistent with one
    DescribeSecret. If AWSPENDING has a value that differs from AWSCURRENT in one account's password, that password is
    staged. ``stage`` writes a copy of AWSCURRENT with the new password and its time as AWSPENDING. ``promote`` moves
    AWSCURRENT there, and ``abandon`` removes AWSPENDING.
    """

    async def read(self) -> StoredSecret:
        """Read the secret as it is now.

        Change times come from ``odd_changed_at`` and ``even_changed_at`` (ISO 8601 with an offset; anything else counts
        as absent). If both are absent, but the store itself knows when the secret was last changed (AWS: CreatedDate of
        the version in AWSCURRENT), it uses that time for both accounts, since no password can have changed later.
        """
        ...

    async def stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
        """Stage ``credential``, a new password of one of the pair's two accounts.

        The username shows which account it is. For readers, the pair, ``active`` and the change times stay the same.
        Also raises :class:`StoreConflict` if ``secret`` already has a staged password.
        """
        ...

    async def promote(self, secret: StoredSecret, *, changed_at: datetime) -> StoredSecret:
        """Make the staged password the account's current one. The rotator has tested it with a login.

        Afterwards nothing is staged, and the account's change time is ``changed_at`` (aware), while the other account's
        is unchanged. The account becomes ``active``, since its password will be valid longest: the other account is
        changed next. Also raises :class:`StoreConflict` if nothing is staged.
        """
        ...

    async def abandon(self, secret: StoredSecret) -> StoredSecret:
        """Remove the staged password, which the database does not accept. Everything else stays the same.

        Also raises :class:`StoreConflict` if nothing is staged.
        """
        ...
