from __future__ import annotations

import asyncpg
import pytest

from aiopqr.testing import EmbeddedPostgres
from support.standby import Standby


@pytest.fixture(scope="module", params=["embedded", "embedded18"])
def primary(request):
    with EmbeddedPostgres(request.param) as primary:
        yield primary


async def test_a_standby_follows_refuses_writes_and_takes_them_when_promoted(primary):
    pair = await primary.create_accounts(database="orders")
    async with Standby(primary) as standby:
        await primary.execute("CREATE TABLE t AS SELECT 1 AS n", database="orders")
        await standby.catch_up()
        dsn = f"postgresql://{standby.host}:{standby.port},{primary.host}:{primary.port}/orders"
        odd = {"user": pair.odd.username, "password": pair.odd.password.reveal, "ssl": False}

        assert await standby.fetchval("SELECT n FROM t", database="orders") == 1
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await standby.execute("DROP TABLE t", database="orders")
        connection = await asyncpg.connect(dsn, target_session_attrs="primary", **odd)
        assert connection._addr[1] == primary.port
        await connection.close()

        await primary.halt("immediate")
        await standby.promote()
        await standby.execute("DROP TABLE t", database="orders")
        connection = await asyncpg.connect(dsn, target_session_attrs="primary", **odd)
        assert connection._addr[1] == standby.port
        await connection.close()
