"""Rotations whose applications come through PgBouncer: verified there, and undone if it cannot follow."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from aiopqr.rotation.errors import RotationUndone
from aiopqr.rotation.gates import Rules
from aiopqr.rotation.plan import Action
from tests.support.pgbouncer import PgBouncer


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_with_auth_query_rotations_are_verified_through_the_proxy(rig: Any, pool_mode: str) -> None:
    # Its server connections are those of the accounts, and are as old as it lets them be: 1 s, and closed when idle.
    async with PgBouncer(rig.postgres.server, pool_mode=pool_mode, server_idle_timeout=0.1) as bouncer:
        dsn = bouncer.dsn_of(rig.postgres.database)
        rules = Rules(max_lifetime=0.0, refresh_interval=0.0, margin=0.0, exempt_applications=frozenset())
        rotator = rig.rotator(verify=dsn, rules=rules, verify_timeout=10.0)
        for _ in range(2):
            await rig.postgres.server.terminate(*rig.postgres.usernames)  # what PgBouncer has kept
            assert (await rotator.apply(await rotator.plan())).action is Action.ROTATE
            pair = (await rig.store.read()).pair
            for account in (pair.odd, pair.even):
                con = await asyncpg.connect(dsn, user=account.username, password=account.password.reveal)
                assert await con.fetchval("SELECT session_user") == account.username
                await con.close()
    assert await rig.is_whole()


async def test_a_static_userlist_that_cannot_follow_has_the_rotation_taken_back(rig: Any) -> None:
    before = (await rig.store.read()).pair
    async with PgBouncer(rig.postgres.server, userlist=(before.odd, before.even)) as bouncer:
        rotator = rig.rotator(verify=bouncer.dsn_of(rig.postgres.database))
        with pytest.raises(RotationUndone, match="path refuses its new password"):
            await rotator.apply(await rotator.plan())
        assert (await rig.store.read()).pair == before
        assert await rig.is_whole()
        assert (await rotator.plan()).refusals == ()  # the proxy's users can log in again, too


async def test_the_admins_own_way_may_lead_through_transaction_pooling(rig: Any) -> None:
    """Transactions hold the locks, so they cannot stay behind on somebody's server connection."""
    server = rig.postgres.server
    async with PgBouncer(server) as bouncer:

        async def admin() -> Any:
            return await asyncpg.connect(
                bouncer.dsn_of("postgres"),
                user=server.admin,
                password=server.admin_password.reveal,
                statement_cache_size=0,
            )

        rotator = rig.rotator(admin=admin)
        await rotator.apply(await rotator.plan())
        assert await rig.is_whole()
        assert await server.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []
