"""Static roles, on a real OpenBao: alone, and under load while it rotates them by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

import pytest
from support.load import Load
from support.vault import closing

import aiopqr
from aiopqr import Parity
from aiopqr.sources import VaultSource
from aiopqr.sources.trouble import Trouble
from aiopqr.sources.vault import VaultError
from aiopqr.sources.vault.client import _Life
from aiopqr.testing import RotatingPostgres, VaultDatabase

SECONDS = 60.0 if os.environ.get("AIOPQR_PROOF") == "1" else 7.0


def source(database: VaultDatabase, *roles: str, **options: object) -> VaultSource:
    return VaultSource.static_roles(*(roles or ("odd", "even")), **{"start_spread": 0, **database.options, **options})


async def test_the_account_changed_last_is_active_and_the_next_fetch_comes_after_the_next_rotation(
    rotating_postgres: RotatingPostgres, vault_database: VaultDatabase
) -> None:
    odd, even = rotating_postgres.usernames
    await vault_database.static_role("odd", odd, period="40s")
    await vault_database.static_role("even", even, period="4000s")
    async with closing(source(vault_database)) as own:
        pair = await own.fetch()
        assert [account and account.username for account in (pair.odd, pair.even)] == [odd, even]
        assert pair.active is Parity.EVEN
        await vault_database.rotate("odd")
        changed = await own.fetch()
        assert (changed.active, changed.even) == (Parity.ODD, pair.even)
        assert changed.odd != pair.odd
        own._client._life = _Life.of(0.0, False, 0.0)  # as if it were known that the root token never expires
        again = (await own.fetch()).refresh_in
        assert again is not None
        assert 38.0 < again < 46.0


async def test_one_role_is_a_single_account(vault_database: VaultDatabase) -> None:
    await vault_database.static_roles()
    async with closing(source(vault_database, "odd")) as own:
        pair = await own.fetch()
    assert (pair.is_single, pair.missing) == (True, None)


async def test_while_one_of_two_roles_cannot_be_read_the_pair_goes_on(
    vault_database: VaultDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await vault_database.static_roles()
    only_odd = f'path "{vault_database.mount}/static-creds/odd" {{ capabilities = ["read"] }}'
    token = await vault_database.vault.token_for(only_odd)
    async with closing(source(vault_database, token=token)) as own:
        for _ in range(2):
            assert (await own.fetch()).missing is Parity.EVEN
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "static-creds/even" in warned[0]
    assert "continuing with the other role alone" in warned[0]
    async with closing(source(vault_database, "no", "such")) as own:
        with pytest.raises(VaultError, match="static-creds/no") as caught:
            await own.fetch()
    assert caught.value.trouble is Trouble.NOT_FOUND


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.parametrize("apart", [0.0, 2.5], ids=["at-the-same-second", "apart"])
async def test_rotated_every_five_seconds_by_vault_itself_nothing_fails(
    postgres: RotatingPostgres, vault_database: VaultDatabase, apart: float
) -> None:
    odd, even = postgres.usernames
    await vault_database.static_role("odd", odd, period="5s")
    await asyncio.sleep(apart)
    await vault_database.static_role("even", even, period="5s")
    pools, loads = 2, []
    failed_before = postgres.failed_logins()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(pools):
            pool = await stack.enter_async_context(
                aiopqr.create_pool(
                    postgres.dsn + "?sslmode=disable",
                    credentials=source(vault_database),
                    min_size=4,
                    max_size=4,
                    max_lifetime=1.0,
                )
            )
            loads.append(await stack.enter_async_context(Load(pool).running(4)))
        await asyncio.sleep(SECONDS)
    assert [load.unexpected for load in loads] == [[], []]
    assert min(load.served for load in loads) > 100 * SECONDS / 12
    rotations = 2 * (SECONDS // 5 + 1)
    assert postgres.failed_logins() - failed_before <= rotations * pools
