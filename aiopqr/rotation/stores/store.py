"""What a rotator asks of a secret store. You can supply a store of your own.

A stored secret is a pair and, while a rotation is under way, one *staged* password: the newer password of one of the
two accounts, which the database may or may not accept yet. The staged password is recorded before the database is
touched, so that after a crash every password that the database may accept can be found.

Exclusion between rotators belongs to the store: each change names the revision that it was decided on, and a store
refuses it when that is no longer what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from ...credentials import Credential, CredentialPair, Parity

#: The keys that a rotator owns in a stored secret. All others survive each change, in value and in order.
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

    ``pair.pending`` is the staged password, if one is open. ``odd_changed_at`` and ``even_changed_at`` say when each
    account's password was last changed, as aware UTC datetimes; None is "not known". ``staged_at`` says the same of the
    stage. ``other`` holds the secret's other keys, for a store's own use. ``revision`` is opaque: equal revisions mean
    equal secrets, and every change makes another.
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
        """When the account's password was last changed; None is "not known"."""
        return self.odd_changed_at if parity is Parity.ODD else self.even_changed_at


@runtime_checkable
class SecretStore(Protocol):
    """Where the pair is kept, and changed in steps that survive a crash.

    Every method raises :class:`StoreError`, with a text that shows no secret, if the store cannot do it. The three
    that change something take the :class:`StoredSecret` they were decided on and return the secret as it is afterwards,
    with its new revision. They raise :class:`StoreConflict`, and change nothing, when the store no longer holds
    ``secret.revision``. Of two rotators that were given the same revision, at most one succeeds. Where a service has no
    atomic compare-and-set, the store writes, reads back, and raises :class:`StoreConflict` when what it reads is not
    its own.

    A change is durable when its method returns. One that was cancelled, or failed other than by StoreConflict, may have
    happened or not; the rotator then reads again.

    A store may also be an async context manager; the command line enters it.

    On AWS Secrets Manager: ``read`` takes AWSCURRENT and AWSPENDING of one DescribeSecret; a version in stage
    AWSPENDING alone (it may have no value yet: then nothing is staged) that differs from AWSCURRENT in one account's
    password is the staged password. ``stage`` puts a whole secret, AWSCURRENT's with that one password and time
    changed, as AWSPENDING. ``promote`` moves AWSCURRENT there. ``abandon`` takes AWSPENDING off.
    """

    async def read(self) -> StoredSecret:
        """The secret as it is now.

        Change times come from ``odd_changed_at`` and ``even_changed_at`` (ISO 8601 with an offset; anything else counts
        as absent). Where both are absent, a store that itself knows when the secret last changed (AWS: CreatedDate of
        the version in AWSCURRENT) gives that for both accounts: no password changed later than that.
        """
        ...

    async def stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
        """Record ``credential``, a new password of one of the pair's two accounts, as the staged one.

        The account is known by its username. The pair itself, ``active`` and the change times stay as they are for
        every reader. Raises :class:`StoreConflict` also when ``secret`` has a stage open already.
        """
        ...

    async def promote(self, secret: StoredSecret, *, changed_at: datetime) -> StoredSecret:
        """Make the staged password the account's current one. The database accepts it, and a login has tested it.

        Afterwards nothing is staged, the account's change time is ``changed_at`` (aware), the other account's is as it
        was, and the account is ``active``: its password is the one that stays longest, because the other account's is
        changed next. Raises :class:`StoreConflict` also when nothing is staged.
        """
        ...

    async def abandon(self, secret: StoredSecret) -> StoredSecret:
        """Forget the staged password: the database does not accept it. Pair, ``active`` and change times stay.

        Raises :class:`StoreConflict` also when nothing is staged.
        """
        ...
