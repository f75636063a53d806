"""A secret store in a KV engine (version 2) of Vault or OpenBao. Its check-and-set protects rotators from each other.

The stage, the change times and all other keys are in one document, as in a file. A role that rotates needs ``create``,
``read`` and ``update`` on ``secret/data/PATH``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar, Unpack

from ...credentials import CredentialPair, parse_time
from ...errors import InvalidSecret
from ...sources.trouble import Trouble
from ...sources.vault.client import VaultClient
from ...sources.vault.errors import VaultError
from ...sources.vault.reach import VaultOptions
from ...sources.vault.rights import in_policy, lacking
from ..errors import StoreConflict, StoreError
from .document import new_document, read_document
from .store import StoredSecret
from .whole import Change, WholeStore

_T = TypeVar("_T")


class VaultStore(WholeStore):
    """A secret store for a pair in one secret of a KV engine.

    ``path``, ``mount`` and the options are those of :meth:`aiopqr.sources.VaultSource.kv`, which reads the secret. Use
    the store as an async context manager, or call :meth:`aclose`. A change that is cancelled still finishes, in a
    thread.
    """

    def __init__(self, path: str, *, mount: str = "secret", **options: Unpack[VaultOptions]) -> None:
        self._path = path.strip("/")
        self._mount = mount.strip("/")
        self._client = VaultClient(**options)

    def __repr__(self) -> str:
        return f"VaultStore({self._path!r}, mount={self._mount!r})"

    def __str__(self) -> str:
        return f"{self._mount}/{self._path}"

    async def read(self) -> StoredSecret:
        """See :meth:`SecretStore.read`."""
        return await self._in_thread(lambda: self._stored(*self._load()))

    async def check_writable(self) -> None:
        """Raise :class:`StoreError` if the token's policies do not allow writing the secret. Changes nothing."""
        await self._in_thread(self._check_writable)

    async def create(self, pair: CredentialPair, *, changed_at: datetime) -> StoredSecret:
        """Create the secret. ``changed_at`` is when both accounts got their passwords.

        Raises :class:`StoreConflict` if there is a secret at that path, even if its newest version is deleted.
        """
        return await self._in_thread(lambda: self._write(new_document(pair, changed_at), 0))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.run(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _change(self, secret: StoredSecret, change: Change) -> StoredSecret:
        def work() -> StoredSecret:
            entries, metadata = self._load()
            if _revision(metadata) != secret.revision:
                raise StoreConflict(f"{self} has changed since it was read")
            return self._write(change(entries), metadata["version"])

        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._client.run_logged_in(work)
        except VaultError as exc:
            problem = str(exc)
        except InvalidSecret as exc:
            problem = f"{self}: {exc}"
        raise StoreError(problem)

    # These block, in the client's thread.

    def _check_writable(self) -> None:
        path = f"{self._mount}/data/{self._path}"
        if lacking(self._client, {path: "update"}):  # None: it may not ask, so writing will show whether it is allowed
            raise StoreError(f"{self}: the token may not write it: add {in_policy(path, 'update')}")

    def _load(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        data = self._client.ask("GET", f"{self._mount}/data/{self._path}")["data"]
        return data["data"], data["metadata"]

    def _write(self, entries: Mapping[str, Any], version: int) -> StoredSecret:
        """Write a new version if the current one is ``version`` (0: if there is no secret yet)."""
        path = f"{self._mount}/data/{self._path}"
        conflict = False
        try:
            metadata = self._client.ask("POST", path, {"data": entries, "options": {"cas": version}})["data"]
        except VaultError as exc:
            if exc.trouble is not Trouble.CONFLICT:
                raise
            conflict = True
        if conflict:
            raise StoreConflict(f"{self} has changed since it was read" if version else f"{self} exists")
        return self._stored(entries, metadata)

    def _stored(self, entries: Mapping[str, Any], metadata: Mapping[str, Any]) -> StoredSecret:
        return read_document(entries, _revision(metadata), unknown=parse_time(metadata["created_time"]))


def _revision(metadata: Mapping[str, Any]) -> str:
    """Identifies a version. The number alone cannot: a secret that was deleted and rewritten starts again at 1."""
    return f"{metadata['version']} {metadata['created_time']}"
