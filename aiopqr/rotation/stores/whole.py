"""The base class of stores that keep the secret as one document and replace it as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ...credentials import Credential
from .document import abandoned, promoted, staged
from .store import StoredSecret

Change = Callable[[Mapping[str, Any]], dict[str, Any]]


class WholeStore(ABC):
    """Implements the three changes of a :class:`SecretStore`, each as a replacement of the document."""

    @abstractmethod
    async def _change(self, secret: StoredSecret, change: Change) -> StoredSecret:
        """Apply ``change`` to the document, if that still has ``secret.revision``."""

    async def stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
        """See :meth:`SecretStore.stage`."""
        now = datetime.now(UTC)
        return await self._change(secret, lambda entries: staged(entries, secret, credential, now))

    async def promote(self, secret: StoredSecret, *, changed_at: datetime) -> StoredSecret:
        """See :meth:`SecretStore.promote`."""
        return await self._change(secret, lambda entries: promoted(entries, secret, changed_at))

    async def abandon(self, secret: StoredSecret) -> StoredSecret:
        """See :meth:`SecretStore.abandon`."""
        return await self._change(secret, lambda entries: abandoned(entries, secret))
