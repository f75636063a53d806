"""Reads a pair from a KV engine, version 2. It checks the metadata first, and reads the value only if it is new."""

from __future__ import annotations

import logging

from ...credentials import CredentialPair
from ...errors import InvalidSecret
from ..trouble import Trouble
from .client import VaultClient
from .errors import ADVICE, VaultError

logger = logging.getLogger("aiopqr")


class KvReader:
    """Reads one secret. Its methods block."""

    def __init__(self, path: str, mount: str) -> None:
        self._path = path.strip("/")
        self._mount = mount.strip("/")
        self._known: tuple[object, CredentialPair] | None = None
        self._sees_metadata = True

    def __repr__(self) -> str:
        return f"kv, {self._mount}/{self._path}"

    def read(self, client: VaultClient) -> CredentialPair:
        """The pair that is in Vault now."""
        if self._known is not None and self._sees_metadata and self._is_current(client, self._known[0]):
            return self._known[1]
        data = client.ask("GET", f"{self._mount}/data/{self._path}")["data"]
        try:
            pair = CredentialPair.from_secret(data["data"])
        except InvalidSecret as exc:
            problem = str(exc)
        else:
            self._known = _version(data["metadata"]), pair
            return pair
        raise VaultError(f"secret {self._mount}/{self._path} of Vault at {client.url}: {problem}", Trouble.INVALID)

    def close(self, client: VaultClient) -> None:
        """Does nothing: reading a secret leaves nothing to clean up."""

    def _is_current(self, client: VaultClient, known: object) -> bool:
        path = f"{self._mount}/metadata/{self._path}"
        try:
            metadata = client.ask("GET", path)["data"]
        except VaultError as exc:
            if exc.trouble is not Trouble.DENIED:
                raise
            self._sees_metadata = False
            logger.warning("%s; reading the whole secret each time instead. Allow read on %s", exc, path)
            return False
        number = metadata["current_version"]
        version = metadata["versions"].get(str(number), {})
        if version.get("deletion_time") or version.get("destroyed"):
            raise VaultError(f"secret {self._mount}/{self._path}: {ADVICE[Trouble.DELETED]}", Trouble.DELETED)
        return _version({**version, "version": number}) == known


def _version(metadata: dict[str, object]) -> object:
    """Identifies a version. The number alone cannot: a secret that was deleted and rewritten starts again at 1."""
    return metadata["version"], metadata["created_time"]
