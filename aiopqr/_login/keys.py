"""The SCRAM keys of the passwords in use, derived once for all logins of one connector."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from .. import _threads
from ..credentials import Credential, Secret
from .scram import Challenge, Keys, derive
from .tls import TlsContexts


class KeyCache:
    """SCRAM keys by password, salt and iterations. It never prints them.

    A derivation runs in one of aiopqr's threads, once for all logins that wait for it. At most ``limit`` keys are kept;
    the least recently used are dropped first. ``contexts`` are the TLS contexts, which the connector's logins share
    too.
    """

    def __init__(self, *, limit: int = 32) -> None:
        self.contexts = TlsContexts()
        self.has_warned = False  # about a password sent as plain text to a server whose identity was not verified
        self._limit = limit
        self._in_use: frozenset[Secret] | None = None
        self._entries: OrderedDict[tuple[Secret, Challenge], Keys | asyncio.Future[Keys]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def keys(
        self, password: Secret, challenge: Challenge, loop: asyncio.AbstractEventLoop
    ) -> Keys | asyncio.Future[Keys]:
        """The keys, or a future of them. Never cancel the future, since others may be waiting for it."""
        key = password, challenge
        entry = self._entries.get(key)
        if entry is None or (isinstance(entry, asyncio.Future) and entry.get_loop() is not loop):
            entry = _threads.shared.submit(_derive, password, challenge)
            entry.add_done_callback(lambda future: self._settle(key, future))
            if self._in_use is not None and password not in self._in_use:
                return entry  # not stored: the login began before the password was replaced
            self._entries[key] = entry
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry

    def keep_only(self, credentials: Iterable[Credential]) -> None:
        """Forget the keys of all other passwords, and do not store new ones for them."""
        self._in_use = frozenset(credential.password for credential in credentials)
        for key in [key for key in self._entries if key[0] not in self._in_use]:
            del self._entries[key]

    def _settle(self, key: tuple[Secret, Challenge], future: asyncio.Future[Keys]) -> None:
        failed = future.cancelled() or future.exception() is not None
        if self._entries.get(key) is future:  # it has not been forgotten in the meantime
            if failed:
                del self._entries[key]
            else:
                self._entries[key] = future.result()


def _derive(password: Secret, challenge: Challenge) -> Keys:
    return derive(password.reveal(), challenge.salt, challenge.iterations)
