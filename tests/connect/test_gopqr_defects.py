"""The defects of gopqr, the Go driver that had the idea first, by number, on real servers.

Those that need no server are in ``tests/pure/test_gopqr.py``. 18 and 21 are about its documentation and its example.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.proxy import Proxy

import aiopqr
from aiopqr._connect import maker_of
from aiopqr.rotation.errors import RotationRefused
from aiopqr.rotation.gates import Rules
from aiopqr.rotation.rotator import Rotator
from aiopqr.rotation.stores.file import FileStore
from aiopqr.testing import HANG, RotatingPostgres


def connector(postgres: RotatingPostgres, dsn: str | None = None, **options: Any) -> aiopqr.Connector:
    defaults = {"credentials": postgres.source, "ssl": "disable"}
    return aiopqr.Connector(dsn or postgres.dsn, **{**defaults, **options})


async def users_of(maker: aiopqr.Connector, count: int) -> Counter[str]:
    """Who logs in when ``count`` connects begin together."""
    made = await asyncio.gather(*(maker.connect() for _ in range(count)))
    users = Counter([await con.fetchval("select session_user") for con in made])
    for con in made:
        await con.close()
    return users


@pytest.fixture
async def proxy(postgres: RotatingPostgres) -> AsyncIterator[Proxy]:
    async with Proxy(postgres.server.host, postgres.server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("reset_after", [None, 0, 1, 60])
async def test_gopqr_01_a_refused_or_reset_connection_is_waited_out_and_ends_nothing(
    postgres: RotatingPostgres, proxy: Proxy, reset_after: int | None
) -> None:
    async with connector(postgres, proxy.dsn_of(postgres.dsn)) as maker:
        proxy.reset_after = reset_after
        if reset_after is None:
            await proxy.refuse()
        waiting = asyncio.create_task(maker.connect())
        async with asyncio.timeout(5):
            while maker_of(maker)._state.outage.failures < 2:
                await asyncio.sleep(0.005)
        proxy.heal()
        await proxy.accept()
        await (await waiting).close()


async def test_gopqr_02_pairs_that_change_while_connects_begin_are_never_torn(postgres: RotatingPostgres) -> None:
    """Each store answer has its own names and passwords; a name with another answer's password would be seen here."""
    pairs = [
        aiopqr.CredentialPair(aiopqr.Credential(f"odd{n}", f"secret{n}"), aiopqr.Credential(f"even{n}", f"secret{n}"))
        for n in range(50)
    ]
    seen: list[tuple[str, str]] = []

    async def connect(*args: Any, user: str, password: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        seen.append((user, password()))
        return object()

    postgres.source.pair = pairs[0]
    async with connector(postgres, connect=connect) as maker:
        for pair in pairs:
            postgres.source.pair = pair
            await asyncio.gather(maker.refresh(), *(maker.connect() for _ in range(4)))
    assert len(seen) == 200
    assert all(
        user.removeprefix("odd").removeprefix("even") == password.removeprefix("secret") for user, password in seen
    )


async def test_gopqr_03_connects_that_begin_at_once_are_shared_between_the_accounts(
    postgres: RotatingPostgres,
) -> None:
    async with connector(postgres) as maker:
        assert await users_of(maker, 10) == dict.fromkeys(postgres.usernames, 5)


async def test_gopqr_04_under_concurrency_each_fallback_is_the_other_account(postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with connector(postgres) as maker:
        assert await users_of(maker, 10) == {postgres.usernames[1]: 10}
    assert postgres.failed_logins() <= 5


async def test_gopqr_05_a_failing_account_does_not_lead_every_second_connect(postgres: RotatingPostgres) -> None:
    await postgres.rotate("odd", store_delay=None)
    async with connector(postgres) as maker:
        for _ in range(10):
            await (await maker.connect()).close()
    assert postgres.failed_logins() == 1


async def test_gopqr_06_many_failures_make_one_fetch_at_a_time_and_one_that_hangs_is_given_up(
    postgres: RotatingPostgres,
) -> None:
    postgres.source.interval = 0
    before = {task.get_name() for task in asyncio.all_tasks()}
    async with connector(postgres, fetch_timeout=0.2) as maker:
        postgres.source.then(HANG)
        await postgres.rotate_both(store_delay=0.1)
        connecting = [asyncio.create_task(maker.connect(), name=f"connect-{n}") for n in range(20)]
        await postgres.source.wait_begun(2)
        fetching = [task for task in asyncio.all_tasks() if task.get_name().endswith("-fetch")]
        assert len(fetching) == 1
        for con in await asyncio.gather(*connecting):
            await con.close()
        assert postgres.source.fetches <= 5
    assert {task.get_name() for task in asyncio.all_tasks()} - before == set()


async def test_gopqr_08_both_passwords_stale_while_the_store_has_good_ones_is_no_error(
    postgres: RotatingPostgres,
) -> None:
    async with connector(postgres) as maker:
        await postgres.rotate_both()
        users = await users_of(maker, 4)
    assert users.total() == 4


async def test_gopqr_09_the_true_error_is_raised_and_both_refusals_are_told(postgres: RotatingPostgres) -> None:
    async with connector(postgres, database="nowhere") as maker:
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await maker.connect()
    await postgres.rotate_both(store_delay=None)
    async with connector(postgres, timeout=0.4) as maker:
        with pytest.raises(aiopqr.CredentialsRefused) as caught:
            await maker.connect()
    assert set(caught.value.refusals) == set(postgres.usernames)
    assert all(type(exc) is asyncpg.InvalidPasswordError for exc in caught.value.refusals.values())
    async with connector(postgres, "postgresql://127.0.0.1:1/db", timeout=0.2) as maker:
        with pytest.raises(aiopqr.ConnectTimeout, match="Refused"):
            await maker.connect()


async def test_gopqr_11_passwords_that_break_urls_log_in(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        for password in ("@evil.example:1/", "a:b", "?x=y#z", "%41%", "&=+ ", "é√ß", "'\"\\"):
            await postgres.rotate("odd", password=password)
            await maker.refresh()
            assert await users_of(maker, 2) == dict.fromkeys(postgres.usernames, 1)
    assert postgres.failed_logins() == 0


async def test_gopqr_14_a_refresh_does_not_reset_the_alternation(postgres: RotatingPostgres) -> None:
    async with connector(postgres) as maker:
        users = []
        for number in range(6):
            con = await maker.connect()
            users.append(await con.fetchval("select session_user"))
            await con.close()
            await postgres.rotate("even" if number % 2 else "odd")
            await maker.refresh()
    assert users == [*postgres.usernames] * 3


async def test_gopqr_15_two_logins_and_all_waiting_share_one_deadline(postgres: RotatingPostgres, proxy: Proxy) -> None:
    async with connector(postgres, proxy.dsn_of(postgres.dsn), timeout=0.6) as maker:
        proxy.blackhole()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(TimeoutError):
            await maker.connect()
        assert 0.5 < loop.time() - begun < 1.1
        proxy.heal()


async def test_gopqr_16_a_reject_in_pg_hba_makes_neither_fallback_nor_fetch(postgres: RotatingPostgres) -> None:
    await postgres.server.set_hba(["host all all all reject"])
    mark = postgres.server.mark()
    try:
        async with connector(postgres, refresh_interval=0) as maker:
            for _ in range(3):
                with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
                    await maker.connect()
            assert maker.stats().fallbacks == 0
    finally:
        await postgres.server.set_hba(None)
    assert postgres.server.log_text(mark).count("pg_hba.conf rejects") == 3
    assert postgres.source.fetches == 1


async def test_gopqr_17_a_source_that_raises_or_a_listener_blocks_no_connect(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(event: object) -> None:
        raise RuntimeError("a bad listener")

    postgres.source.interval = 0
    async with connector(postgres, listeners=[raising]) as maker:
        postgres.source.error = RuntimeError("a bad source")
        await postgres.rotate("odd", store_delay=None)
        assert await users_of(maker, 6) == {postgres.usernames[1]: 6}
        await postgres.source.wait_fetched(2)
        postgres.source.error = None
        postgres.source.pair = postgres.pair
        await maker.refresh()
        assert set(await users_of(maker, 2)) == set(postgres.usernames)
    assert "a bad listener" in caplog.text


async def test_gopqr_19_connectors_of_different_servers_share_nothing(postgres: RotatingPostgres) -> None:
    stranger = replace(postgres.pair, odd=aiopqr.Credential("stranger", "x"), even=aiopqr.Credential("other", "y"))
    async with connector(postgres) as right, connector(postgres, credentials=stranger, timeout=0.2) as wrong:
        with pytest.raises(aiopqr.CredentialsRefused):
            await wrong.connect()
        assert await users_of(right, 2) == dict.fromkeys(postgres.usernames, 1)
        assert right.stats().accounts["odd"].refused == 0


async def test_gopqr_20_refreshes_refusals_and_errors_print_no_password(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[object] = []
    pairs = [postgres.pair]
    shown = ""
    async with connector(postgres, timeout=0.4, listeners=[heard.append]) as maker:
        await postgres.rotate_both(store_delay=None)
        try:
            await maker.connect()
        except aiopqr.CredentialsRefused as exc:
            shown = "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())
        postgres.source.pair = postgres.pair
        await maker.refresh()
        shown += repr((maker, maker.stats(), maker.refresher, maker.pair, heard))
    pairs.append(postgres.pair)
    shown += caplog.text + "".join(capfd.readouterr())
    assert "CredentialsRefused" in shown
    assert not [one for pair in pairs for one in pair.credentials() if one.password.reveal() in shown]


async def test_gopqr_21_the_quickstart_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    """gopqr's example panics in its own error branch. Ours ends with the error itself."""
    secret = tmp_path / "pair.json"
    secret.write_text("{")
    code = (
        "import asyncio, aiopqr\n"
        "from aiopqr.sources import FileSource\n"
        "async def main():\n"
        f"    source = FileSource({str(secret)!r})\n"
        "    async with aiopqr.create_pool('postgresql://127.0.0.1:1/db', credentials=source): pass\n"
        "asyncio.run(main())\n"
    )
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith("aiopqr.errors.SourceError: ")


async def test_gopqr_22_the_spacing_of_rotations_is_enforced(postgres: RotatingPostgres, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "pair.json")
    await store.create(postgres.pair, changed_at=datetime.now(UTC))
    rotator = Rotator(
        admin=postgres.server.admin_connect, store=store, verify=postgres.dsn, rules=Rules(max_lifetime=1800.0)
    )
    plan = await rotator.plan()
    with pytest.raises(RotationRefused):
        await rotator.apply(plan)
    for account in postgres.pair.credentials():
        con = await asyncpg.connect(postgres.dsn, user=account.username, password=account.password.reveal)
        await con.close()
