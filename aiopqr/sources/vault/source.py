"""Vault and OpenBao as a source: a pair of static roles, a secret in a KV engine, or the leases of a dynamic role."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import Protocol, Unpack

from ...credentials import CredentialPair
from ...options import non_negative
from .client import VaultClient
from .errors import VaultError
from .kv import KvReader
from .leases import LeaseReader
from .reach import VaultOptions
from .static_roles import StaticRolesReader

logger = logging.getLogger("aiopqr")


class EngineReader(Protocol):
    """Reads credentials from one kind of Vault engine. Its methods block, and run in the client's thread."""

    def read(self, client: VaultClient) -> CredentialPair: ...

    def close(self, client: VaultClient) -> None: ...


class VaultSource:
    """Credentials in Vault or OpenBao. Needs the extra ``aiopqr[vault]``.

    Make one with :meth:`static_roles`, :meth:`kv` or :meth:`dynamic`. All of them take these options:

    * ``url`` (default: ``VAULT_ADDR``), ``namespace`` (``VAULT_NAMESPACE``), ``timeout`` (seconds for each step of one
      request; default 5).
    * ``token`` (default: ``VAULT_TOKEN``, or ``~/.vault-token``); or ``auth``, one of :mod:`aiopqr.sources.vault.auth`:
      ``AppRole``, ``Kubernetes``, ``JWT``, ``TokenFile``, or any function that logs an ``hvac.Client`` in and returns
      Vault's response. The token is renewed. When that is no longer possible, ``auth`` logs in again.
    * ``verify`` (a CA bundle's path, or False; default: ``VAULT_CACERT``, ``VAULT_CAPATH``), ``cert`` (the paths of a
      client certificate and its key; default: ``VAULT_CLIENT_CERT`` and ``VAULT_CLIENT_KEY``).
    * ``client``: your own ``hvac.Client``, used as is instead of the above, and never closed. Nothing else
      should use it at the same time.
    * ``interval``: seconds between routine fetches (default 60, but 0 for :meth:`dynamic`: none). The next fetch comes
      sooner if a password is about to change, or if a lease or the token is about to expire.
    * ``start_spread``: the very first fetch is delayed by a random time of up to this many seconds (default 1), so that
      a fleet that starts together does not call Vault all at once.

    If a fetch raises :class:`VaultError`, pools keep the pair they have.
    """

    def __init__(
        self,
        reader: EngineReader,
        *,
        interval: float = 60.0,
        start_spread: float = 1.0,
        **options: Unpack[VaultOptions],
    ) -> None:
        self._reader = reader
        self._client = VaultClient(**options)
        self._close_timeout = 2 * options.get("timeout", 5.0)
        self.interval = non_negative("interval", interval)
        self._spread = non_negative("start_spread", start_spread)

    @classmethod
    def static_roles(
        cls,
        odd: str,
        even: str | None = None,
        *,
        mount: str = "database",
        interval: float = 60.0,
        start_spread: float = 1.0,
        **options: Unpack[VaultOptions],
    ) -> VaultSource:
        """Use one or two static roles of a database engine.

        Vault changes the passwords, and each change is fetched right after it. The policy needs ``read`` on
        ``database/static-creds/ROLE`` for each role.
        """
        reader = StaticRolesReader(odd, even, mount)
        return cls(reader, interval=interval, start_spread=start_spread, **options)

    @classmethod
    def kv(
        cls,
        path: str,
        *,
        mount: str = "secret",
        interval: float = 60.0,
        start_spread: float = 1.0,
        **options: Unpack[VaultOptions],
    ) -> VaultSource:
        """Use a secret in a KV engine (version 2), with the same keys as for :class:`FileSource`.

        The policy needs ``read`` on ``secret/data/PATH`` and ``secret/metadata/PATH``.
        """
        return cls(KvReader(path, mount), interval=interval, start_spread=start_spread, **options)

    @classmethod
    def dynamic(
        cls,
        role: str,
        *,
        mount: str = "database",
        interval: float = 0.0,
        start_spread: float = 1.0,
        **options: Unpack[VaultOptions],
    ) -> VaultSource:
        """Use two leases of a dynamic role: Vault creates an account for each lease, and drops it when the lease ends.

        The leases are renewed up to their maximum TTL and then replaced, one at a time. Connections are replaced before
        their account's lease ends. :meth:`aclose` revokes the leases.

        A routine fetch renews both leases, to find out whether they still exist. By default (``interval=0``) there are
        none: the leases say when to fetch, and a refused login shows that a lease was revoked.

        The policy needs ``read`` on ``database/creds/ROLE``, and ``update`` on ``sys/leases/renew`` and
        ``sys/leases/revoke``.
        """
        return cls(LeaseReader(role, mount), interval=interval, start_spread=start_spread, **options)

    def __repr__(self) -> str:
        return f"VaultSource({self._reader!r} at {self._client.url})"

    async def fetch(self) -> CredentialPair:
        """Return the pair that is in Vault now. Raises :class:`VaultError`.

        Cancelling the call does not stop a request that has begun.
        """
        spread, self._spread = self._spread, 0.0
        if spread:
            await asyncio.sleep(random.uniform(0.0, spread))
        return await self._client.run_logged_in(self._read)

    async def aclose(self) -> None:
        """Revoke the leases and close the connections, within about twice ``timeout``. A later fetch starts afresh."""
        try:
            async with asyncio.timeout(self._close_timeout):
                await self._client.run(self._close)
        except TimeoutError:
            logger.warning("%r does not answer, so it was not closed cleanly; any leases will expire", self)
        except VaultError as exc:
            logger.warning("%r could not be closed cleanly (%s); any leases will expire", self, exc)

    def _read(self) -> CredentialPair:
        pair = self._reader.read(self._client)
        due = self._client.due_in if pair.refresh_in is None else min(self._client.due_in, pair.refresh_in)
        return replace(pair, refresh_in=due)

    def _close(self) -> None:
        try:
            self._reader.close(self._client)
        finally:
            self._client.close()
