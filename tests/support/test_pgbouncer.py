from __future__ import annotations

import asyncpg
import pytest

from support.pgbouncer import PgBouncer


@pytest.fixture
def bouncer(postgres):
    """Start a PgBouncer in front of the test's server."""
    started = []

    def start(**options):
        started.append(PgBouncer(postgres.server, **options).start())
        return started[-1]

    yield start
    for each in started:
        each.stop()


async def login(bouncer, postgres, account):
    dsn = bouncer.dsn_of(postgres.database)
    return await asyncpg.connect(
        dsn, user=account.username, password=account.password.reveal, statement_cache_size=0, ssl=False
    )


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_both_accounts_log_in_and_a_changed_password_is_known(postgres, bouncer, pool_mode):
    running = bouncer(pool_mode=pool_mode)
    for _ in range(2):
        for account in postgres.pair.credentials():
            connection = await login(running, postgres, account)
            assert await connection.fetchval("SELECT session_user") == account.username
            await connection.close()
        await postgres.rotate_both()


async def test_a_wrong_password_is_refused_by_pgbouncer_itself(postgres, bouncer):
    with pytest.raises(asyncpg.PostgresError) as caught:
        await login(bouncer(), postgres, postgres.pair.odd.__class__(postgres.pair.odd.username, "guess"))
    assert caught.value.sqlstate == "08P01"
    assert postgres.failed_logins() == 0


async def test_with_a_userlist_only_its_accounts_log_in(postgres, bouncer):
    running = bouncer(userlist=(postgres.pair.odd,))
    await (await login(running, postgres, postgres.pair.odd)).close()
    with pytest.raises(asyncpg.PostgresError):
        await login(running, postgres, postgres.pair.even)


async def test_stopping_leaves_nothing(postgres, bouncer):
    running = bouncer()
    home, process = running.home, running._process
    running.stop()
    assert not home.exists()
    assert process.poll() is not None
    with pytest.raises(ConnectionRefusedError):
        await login(running, postgres, postgres.pair.odd)
