"""A rotator on a real server: the pair in a file, the accounts in a fresh database."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.gates import Rules
from aiopqr.rotation.rotator import Rotator
from aiopqr.rotation.stores.file import FileStore
from aiopqr.rotation.stores.vault import VaultStore
from aiopqr.testing import RotatingPostgres, Vault


@dataclass
class Rig:
    """What a test of a rotation needs; ``rotator()`` makes one, with anything replaced."""

    postgres: RotatingPostgres
    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> FileStore:
        return FileStore(self.path)

    async def admin(self) -> asyncpg.Connection[asyncpg.Record]:
        return await self.postgres.server.admin_connect()

    def rotator(self, **options: Any) -> Rotator:
        given = {
            "admin": self.admin,
            "store": self.store,
            "verify": self.postgres.dsn,
            "rules": Rules(max_lifetime=60.0, refresh_interval=1.0, margin=1.0),
            "announce": 0.0,
        }
        return Rotator(**{**given, **self.options, **options})

    async def accepts(self, credential: Credential | None) -> bool:
        """Whether the database accepts a password."""
        assert credential is not None
        try:
            con = await asyncpg.connect(
                self.postgres.dsn, user=credential.username, password=credential.password.reveal
            )
        except asyncpg.InvalidAuthorizationSpecificationError:
            return False
        await con.close()
        return True

    async def is_whole(self) -> bool:
        """Whether the store has both accounts' passwords and nothing staged."""
        pair = (await self.store.read()).pair
        return pair.pending is None and await self.accepts(pair.odd) and await self.accepts(pair.even)

    async def start(self, pair: CredentialPair, age: float) -> None:
        self.path.unlink(missing_ok=True)
        await self.store.create(pair, changed_at=datetime.now(UTC) - timedelta(seconds=age))

    def leftovers(self) -> list[str]:
        """Files next to the store that nobody needs."""
        return sorted(set(os.listdir(self.path.parent)) - {self.path.name})

    def name(self, parity: Parity) -> str:
        credential = self.postgres.pair[parity]
        assert credential is not None
        return credential.username


@pytest.fixture
async def rig(postgres: RotatingPostgres, tmp_path: Path) -> Rig:
    rig = Rig(postgres, tmp_path / "pair.json")
    await rig.start(postgres.pair, age=3600.0)
    return rig


class VaultRig(Rig):
    """The pair in a KV engine instead."""

    def __init__(self, postgres: RotatingPostgres, vault: Vault) -> None:
        environment = {"VAULT_ADDR": vault.url, "VAULT_TOKEN": vault.token.reveal()}
        super().__init__(postgres, Path(postgres.database), environment=environment)
        self.vault = vault
        self._store = VaultStore(postgres.database, **vault.options)

    @property
    def store(self) -> Any:
        return self._store

    async def start(self, pair: CredentialPair, age: float) -> None:
        await self.vault.ask("DELETE", f"secret/metadata/{self.path}")
        await self.store.create(pair, changed_at=datetime.now(UTC) - timedelta(seconds=age))

    def leftovers(self) -> list[str]:
        return []


@pytest.fixture
async def vault_rig(postgres: RotatingPostgres, vault: Vault) -> AsyncIterator[VaultRig]:
    rig = VaultRig(postgres, vault)
    await rig.start(postgres.pair, age=3600.0)
    yield rig
    await rig.store.aclose()
