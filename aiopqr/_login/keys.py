"""The SCRAM keys of the passwords in use, derived once for all logins of one owner."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from ..credentials import Credential, Secret
from .scram import Challenge, Keys, derive
from .tls import TlsContexts


class KeyCache:
    """SCRAM keys by password, salt and iterations; the least recently used go first. Shows nothing of what it holds.

    A derivation runs in the loop's default executor, once however many logins wait for it. `contexts` holds the other
    thing that logins of one owner have in common.
    """

    def __init__(self, *, limit: int = 32) -> None:
        self.contexts = TlsContexts()
        self._limit = limit
        self._entries: OrderedDict[tuple[Secret, Challenge], Keys | asyncio.Future[Keys]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def keys(
        self, password: Secret, challenge: Challenge, loop: asyncio.AbstractEventLoop
    ) -> Keys | asyncio.Future[Keys]:
        """The keys, or a future of them that others may wait for too: never cancel it."""
        key = password, challenge
        entry = self._entries.get(key)
        if entry is None or (isinstance(entry, asyncio.Future) and entry.get_loop() is not loop):
            entry = loop.run_in_executor(None, _derive, password, challenge)
            self._entries[key] = entry
            entry.add_done_callback(lambda future: self._settle(key, future))
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry

    def forget(self, credential: Credential) -> None:
        """Drop the keys of a credential that is no longer in use."""
        for key in [key for key in self._entries if key[0] == credential.password]:
            del self._entries[key]

    def _settle(self, key: tuple[Secret, Challenge], future: asyncio.Future[Keys]) -> None:
        failed = future.cancelled() or future.exception() is not None
        if self._entries.get(key) is future:  # not forgotten meanwhile
            if failed:
                del self._entries[key]
            else:
                self._entries[key] = future.result()


def _derive(password: Secret, challenge: Challenge) -> Keys:
    return derive(password.reveal(), challenge.salt, challenge.iterations)
