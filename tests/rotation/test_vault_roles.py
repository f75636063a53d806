"""Static roles of Vault on a real server, with a stand-in for Vault."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.stores.store import StoredSecret
from aiopqr.rotation.vault_roles import VaultRolesRotator


class Roles:
    """A rig's two accounts as Vault would show and change them."""

    def __init__(self, rig: Any, secret: StoredSecret) -> None:
        self.rig = rig
        self.secret = secret

    async def read(self) -> StoredSecret:
        return self.secret

    async def rotate(self, parity: Parity) -> None:
        assert parity is Parity.ODD
        new = Credential(self.rig.name(parity), "what Vault made up")
        await self.rig.postgres.server.set_password(new.username, new.password.reveal())
        pair = CredentialPair(new, self.secret.pair.even)
        self.secret = replace(self.secret, pair=pair, odd_changed_at=datetime.now(UTC))


async def test_an_applications_path_that_needs_a_moment_to_learn_what_vault_did_is_waited_for(rig: Any) -> None:
    roles, refused = Roles(rig, await rig.store.read()), []
    known = roles.secret.pair

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even) and len(refused) < 2:
            refused.append(1)
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    unlike: Any = roles
    rotator = VaultRolesRotator(roles=unlike, admin=rig.admin, verify=verify)
    done = await rotator.apply(await rotator.plan(account=Parity.ODD))
    assert done.username == rig.name(Parity.ODD)
    assert len(refused) == 2
