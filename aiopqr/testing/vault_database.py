"""A database engine in a real Vault, which manages the accounts of a test's database."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from ..rotation.sql import identifier
from .errors import ServerError
from .rotating import RotatingPostgres

if TYPE_CHECKING:
    from .vault import Vault

_PATIENCE = 30.0


class VaultDatabase:
    """A database engine in Vault for one database. Pass :attr:`options`, which include ``mount``, to a source."""

    def __init__(self, vault: Vault, postgres: RotatingPostgres) -> None:
        self.vault = vault
        self.postgres = postgres
        self.mount = f"database-{postgres.database}"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for ``VaultSource.static_roles("odd", "even", **database.options)``."""
        return {"mount": self.mount, **self.vault.options}

    async def static_role(self, name: str, username: str, period: str = "24h") -> None:
        """Create a static role. Vault changes the account's password now, and every ``period`` (at least 5 s)."""
        await self._write(f"static-roles/{name}", db_name="db", username=username, rotation_period=period)

    async def static_roles(self, period: str = "24h") -> None:
        """Make the two accounts static roles, named ``odd`` and ``even``."""
        for name, username in zip(("odd", "even"), self.postgres.usernames, strict=True):
            await self.static_role(name, username, period)

    async def rotate(self, role: str) -> None:
        """Make Vault change a static role's password now.

        Just after an unseal, Vault answers 500 (duplicate item) while it fills its queue of rotations. This retries.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self.vault.ask("POST", f"{self.mount}/rotate-role/{role}")
                return
            except ServerError as exc:
                if f"rotate-role/{role}: 500 " not in str(exc) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def dynamic_role(self, name: str, *, ttl: str = "1h", max_ttl: str = "24h") -> None:
        """Create a dynamic role, whose accounts are members of the database's owner."""
        owner = identifier(self.postgres.owner)
        create = [
            "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
            f'GRANT {owner} TO "{{{{name}}}}"',
        ]
        await self._write(f"roles/{name}", db_name="db", creation_statements=create, default_ttl=ttl, max_ttl=max_ttl)

    async def leases(self, role: str) -> list[str]:
        """Return the ids of a dynamic role's current leases."""
        prefix = f"{self.mount}/creds/{role}/"
        try:
            found = await self.vault.ask("LIST", f"sys/leases/lookup/{prefix}")
        except ServerError as exc:
            if ": 404 " in str(exc):
                return []
            raise
        return [prefix + name for name in found["data"]["keys"]]

    async def drop(self) -> None:
        """Remove the engine with all its roles, and revoke its leases."""
        await self.vault.ask("DELETE", f"sys/mounts/{self.mount}")

    async def _write(self, path: str, **body: Any) -> None:
        await self.vault.ask("POST", f"{self.mount}/{path}", **body)
