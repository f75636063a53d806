"""Pools under load while Vault is killed, sealed, slow, or refuses us, and passwords change: nothing fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.load import Load
from support.proxy import Proxy

import aiopqr
from aiopqr import events
from aiopqr.sources import VaultSource
from aiopqr.sources.vault import AppRole, client
from aiopqr.testing import RotatingPostgres, VaultDatabase
from aiopqr.testing.server import in_a_thread

PROOF = os.environ.get("AIOPQR_PROOF") == "1"
SECONDS = 10.0 if PROOF else 2.0


@dataclass
class Rig:
    """A pool of two static roles under load, and its refresher's events."""

    postgres: RotatingPostgres
    database: VaultDatabase
    options: dict[str, Any]
    heard: list[events.Event] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def working(self, **more: Any) -> AsyncIterator[aiopqr.AlternatingPool]:
        source = VaultSource.static_roles("odd", "even", start_spread=0, **{**self.options, **more})
        async with (
            aiopqr.create_pool(
                f"{self.postgres.dsn}?sslmode=disable",
                credentials=source,
                min_size=4,
                max_size=4,
                max_lifetime=0.5,
                refresh_interval=0.5,
                listeners=[self.heard.append],
            ) as pool,
            Load(pool).running(4) as load,
        ):
            yield pool
            await load.serves()
        assert load.unexpected == []
        assert load.served > 20

    async def rotate_both(self, pool: aiopqr.AlternatingPool) -> None:
        """Let Vault change both, the second when the pool knows the first."""
        for role in ("odd", "even"):
            await self.database.rotate(role)
            await pool.refresh()

    async def says(self, kind: type[events.Event], words: str = "") -> None:
        """Wait until an event of this kind has come."""
        async with asyncio.timeout(30.0):
            while not any(isinstance(event, kind) and words in str(event) for event in self.heard):
                await asyncio.sleep(0.02)


@pytest.fixture
async def rig(postgres: RotatingPostgres, vault_database: VaultDatabase) -> Rig:
    await vault_database.static_roles()
    return Rig(postgres, vault_database, vault_database.options)


async def policy(rig: Rig, name: str, *, allows: bool) -> None:
    capability = "read" if allows else "deny"
    text = f'path "{rig.database.mount}/static-creds/*" {{ capabilities = ["{capability}"] }}'
    await rig.database.vault.ask("POST", f"sys/policies/acl/{name}", policy=text)


@pytest.mark.parametrize("way", ["killed", "sealed"])
@pytest.mark.timeout(180)
async def test_while_vault_is_away_a_changed_password_costs_nothing(rig: Rig, way: str) -> None:
    vault = rig.database.vault
    async with rig.working() as pool:
        await rig.rotate_both(pool)
        await in_a_thread(vault.kill if way == "killed" else vault.seal)
        await rig.says(events.RefreshFailed, "no answer" if way == "killed" else "sealed")
        # Nobody can publish this one, so the other account is used.
        await rig.postgres.server.set_password(rig.postgres.usernames[0], secrets.token_hex(8))
        await asyncio.sleep(SECONDS)
        await in_a_thread(vault.resume if way == "killed" else vault.unseal)
        await rig.says(events.RefreshRecovered)
        await rig.rotate_both(pool)
        await asyncio.sleep(0.5)


async def test_a_policy_that_is_taken_away_and_given_back_is_told_so(rig: Rig) -> None:
    name = f"taken-{secrets.token_hex(4)}"
    await policy(rig, name, allows=True)
    made = await rig.database.vault.ask("POST", "auth/token/create", policies=[name])
    async with rig.working(token=made["auth"]["client_token"]) as pool:
        await rig.rotate_both(pool)
        await policy(rig, name, allows=False)
        await rig.says(events.RefreshFailed, "its policies do not allow this")
        await rig.database.rotate("odd")
        await asyncio.sleep(SECONDS)
        await policy(rig, name, allows=True)
        await rig.says(events.RefreshRecovered)
        await rig.rotate_both(pool)


async def test_a_revoked_token_is_told_so_and_with_a_login_costs_nothing(rig: Rig) -> None:
    vault, name = rig.database.vault, f"taken-{secrets.token_hex(4)}"
    await policy(rig, name, allows=True)
    token = (await vault.ask("POST", "auth/token/create", policies=[name]))["auth"]["client_token"]
    async with rig.working(token=token):
        await vault.revoke(token)
        await rig.says(events.RefreshFailed, "Vault does not accept our token")
        await rig.database.rotate("odd")
        await asyncio.sleep(SECONDS / 2)
    await vault.ask("POST", f"sys/auth/{name}", type="approle")
    await vault.ask("POST", f"auth/{name}/role/app", token_policies=[name])
    role_id = (await vault.ask("GET", f"auth/{name}/role/app/role-id"))["data"]["role_id"]
    secret_id = (await vault.ask("POST", f"auth/{name}/role/app/secret-id", num_uses=0))["data"]["secret_id"]
    rig.heard.clear()
    async with rig.working(token=None, auth=AppRole(role_id, secret_id, mount=name)) as pool:
        await vault.ask("POST", f"sys/leases/revoke-prefix/auth/{name}/login", sync=True)
        await rig.rotate_both(pool)
        assert not any(isinstance(event, events.RefreshFailed) for event in rig.heard)


async def test_answers_that_take_too_long_are_given_up_and_cost_nothing(rig: Rig) -> None:
    parts = urlsplit(rig.database.vault.url)
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(parts.hostname or "", parts.port or 0))
        pool = await stack.enter_async_context(rig.working(url=f"http://127.0.0.1:{proxy.port}", timeout=0.5))
        proxy.delay = 0.1
        await rig.rotate_both(pool)
        proxy.delay = 3.0
        await rig.says(events.RefreshFailed, "no answer")
        await rig.database.rotate("odd")
        await asyncio.sleep(SECONDS)
        proxy.heal()
        await rig.says(events.RefreshRecovered)
        await rig.rotate_both(pool)


@pytest.mark.parametrize("kind", ["static roles", "kv", "dynamic"])
async def test_twenty_pools_that_see_one_rotation_ask_at_most_twice_each_in_a_second(
    rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hvac.adapters

    asked: list[tuple[int, float]] = []
    original = hvac.adapters.RawAdapter.request

    def request(adapter: Any, *args: Any, **more: Any) -> Any:
        asked.append((id(adapter), time.monotonic()))
        return original(adapter, *args, **more)

    def most(until: float) -> int:
        counts = Counter(adapter for adapter, at in asked if at < until)
        return max(counts.values(), default=0)

    monkeypatch.setattr(hvac.adapters.RawAdapter, "request", request)
    monkeypatch.setattr(client, "_LOOK_UP_AFTER", (60.0, 60.0))  # not in the second that is looked at
    vault, path = rig.database.vault, rig.postgres.database
    if kind == "kv":
        await vault.put(path, await as_it_is(rig))
    await rig.database.dynamic_role("app")
    sources = {
        "static roles": lambda: VaultSource.static_roles("odd", "even", **rig.database.options),
        "kv": lambda: VaultSource.kv(path, **vault.options),
        "dynamic": lambda: VaultSource.dynamic("app", **rig.database.options),
    }
    pools = [
        aiopqr.create_pool(
            f"{rig.postgres.dsn}?sslmode=disable",
            credentials=sources[kind](),
            min_size=1,
            max_size=2,
            max_lifetime=0.5,
        )
        for _ in range(20)
    ]
    try:
        await asyncio.gather(*pools)
        assert most(time.monotonic()) == (1 if kind == "kv" else 2)
        asked.clear()
        begun = time.monotonic()
        if kind == "static roles":  # and nobody changes the password of a lease
            await rig.database.rotate("odd")
        elif kind == "kv":
            secret = {**await as_it_is(rig), "odd_password": secrets.token_hex(8)}
            await vault.put(path, secret)
            await rig.postgres.server.set_password(secret["odd_username"], secret["odd_password"])
        await asyncio.sleep(1.5)
        assert most(begun + 1.0) <= 2
    finally:
        await asyncio.gather(*(pool.close() for pool in pools))


async def as_it_is(rig: Rig) -> dict[str, str]:
    """Both accounts as Vault has set them, as a secret."""
    secret = {"active_credential": "even"}
    for role in ("odd", "even"):
        data = (await rig.database.vault.ask("GET", f"{rig.database.mount}/static-creds/{role}"))["data"]
        secret |= {f"{role}_username": data["username"], f"{role}_password": data["password"]}
    return secret
