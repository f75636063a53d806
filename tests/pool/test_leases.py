"""Accounts that end: leases on a real server, whose roles are made, revoked and dropped while a pool is in use."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from support.load import Load

import aiopqr
from aiopqr import Credential, CredentialPair, Parity, SourceError, events
from aiopqr.testing import RotatingPostgres, ScriptedSource

from .conftest import eventually

PROOF = bool(os.environ.get("AIOPQR_PROOF"))


class Lessor:
    """Makes roles that live for some seconds, and then lose their rights and are dropped, like Vault's."""

    def __init__(self, postgres: RotatingPostgres, seconds: float) -> None:
        self.postgres = postgres
        self.seconds = seconds
        self.live: list[str] = []

    async def lease(self, *, seconds: float | None = None) -> Credential:
        account = Credential(
            f"{self.postgres.owner}_v_{secrets.token_hex(4)}",
            secrets.token_urlsafe(12),
            expires_at=datetime.now(UTC) + timedelta(seconds=self.seconds if seconds is None else seconds),
            ends_sessions=True,
        )
        name, password = account.username, account.password.reveal()
        await self.postgres.server.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
        await self.run(f'GRANT SELECT, INSERT ON items TO "{name}"')
        self.live.append(name)
        return account

    async def revoke(self, account: Credential) -> None:
        self.live.remove(account.username)
        await self.run(f'REVOKE ALL ON items FROM "{account.username}"; DROP ROLE "{account.username}"')

    async def run(self, sql: str) -> None:
        await self.postgres.server.execute(sql, database=self.postgres.database)

    async def __aenter__(self) -> Lessor:
        await self.run("CREATE TABLE items (a int)")
        return self

    async def __aexit__(self, *exc: object) -> None:
        for name in self.live:
            await self.run(f'REVOKE ALL ON items FROM "{name}"; DROP ROLE "{name}"')


class ItemLoad(Load):
    """Like a service that needs its rights."""

    async def _work(self) -> None:
        while not self._stop:
            try:
                await self.pool.fetchval("SELECT count(*) FROM items")
                self.served += 1
            except Exception as exc:
                self._failed("query", exc, 0.0)
            await asyncio.sleep(0.002)


@pytest.mark.proof
async def test_leases_that_are_replaced_by_turns_cost_no_error(postgres: RotatingPostgres) -> None:
    """Each lease is replaced while another one lasts, and revoked when its time is over; nobody notices."""
    lasting, turns = (8.0, 12) if PROOF else (5.0, 4)
    async with Lessor(postgres, lasting) as lessor:
        odd, even = await lessor.lease(), await lessor.lease()
        source = ScriptedSource(CredentialPair(odd, even), interval=0.1)
        async with aiopqr.create_pool(postgres.dsn, credentials=source, min_size=4, max_size=4) as pool:
            load = ItemLoad(pool)
            async with load.running(6):
                for turn in range(turns):
                    await asyncio.sleep(lasting / 5)
                    old, newer = (odd, even)[turn % 2], await lessor.lease()
                    odd, even = (newer, even) if turn % 2 == 0 else (odd, newer)
                    source.pair = CredentialPair(odd, even)
                    await asyncio.sleep(lasting / 10)
                    await lessor.revoke(old)
                    await load.serves()
        assert load.unexpected == []
        assert pool.stats().replacements.why["superseded"] > 0


async def test_a_lease_that_is_renewed_keeps_its_connections(postgres: RotatingPostgres) -> None:
    async with Lessor(postgres, 1.5) as lessor:
        account = await lessor.lease()
        source = ScriptedSource(CredentialPair.single(account), interval=0.2)
        heard: list[events.Event] = []
        async with aiopqr.create_pool(
            postgres.dsn, credentials=source, min_size=2, max_size=2, listeners=[heard.append]
        ) as pool:
            pids = {await con.fetchval("SELECT pg_backend_pid()") for con in [await pool.acquire() for _ in range(2)]}
            for _ in range(6):
                await asyncio.sleep(0.5)
                until = datetime.now(UTC) + timedelta(seconds=1.5)
                source.pair = CredentialPair.single(
                    Credential(account.username, account.password, until, ends_sessions=True)
                )
            assert len(pids) == 2
            assert pool.stats().accounts[Parity.ODD].opened == 2
            assert any(isinstance(event, events.CredentialsRenewed) for event in heard)
            pool.terminate()


async def test_a_connection_whose_lease_ends_is_replaced_before_if_another_account_lasts(
    postgres: RotatingPostgres,
) -> None:
    async with Lessor(postgres, 6.0) as lessor:
        short, long = await lessor.lease(), await lessor.lease(seconds=500)
        heard: list[events.Event] = []
        pair = CredentialPair(Credential(short.username, short.password), None)  # so that the first connections use it
        source = ScriptedSource(pair)
        async with aiopqr.create_pool(
            postgres.dsn, credentials=source, min_size=4, max_size=4, listeners=[heard.append]
        ) as pool:
            source.pair = CredentialPair(short, long)
            await pool.refresh()
            load = ItemLoad(pool)
            async with asyncio.timeout(20), load.running(4):
                while pool.stats().accounts[Parity.ODD].open:
                    await asyncio.sleep(0.01)
            assert load.unexpected == []
            assert not any(isinstance(event, events.LeaseEnded) for event in heard)
            assert pool.stats().size == 4
            assert pool.stats().replacements.why["lease"] == 4


async def test_a_connection_without_a_replacement_serves_until_its_lease_ends(postgres: RotatingPostgres) -> None:
    async with Lessor(postgres, 1.5) as lessor:
        heard: list[events.Event] = []
        source = ScriptedSource(CredentialPair.single(await lessor.lease()), interval=0)
        async with aiopqr.create_pool(
            postgres.dsn, credentials=source, min_size=1, max_size=2, listeners=[heard.append], timeout=1.0
        ) as pool:
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - begun < 1.0:
                await pool.fetchval("SELECT count(*) FROM items")
            await eventually(lambda: any(isinstance(event, events.LeaseEnded) for event in heard))
            assert pool.stats().size == 0
            with pytest.raises(aiopqr.CredentialsExpired, match=r"_v_\w+ \d+ s ago\), and the source has not returned"):
                async with pool.acquire():
                    pass
            source.pair = CredentialPair.single(await lessor.lease(seconds=500))
            assert await pool.fetchval("SELECT count(*) FROM items", timeout=20) == 0
        assert sum(isinstance(event, events.LeaseEnded) for event in heard) == 1, "reported once"
        assert any(isinstance(event, events.CredentialExpired) for event in heard)


async def test_a_spare_whose_lease_is_about_to_end_is_not_used_if_another_account_lasts(
    postgres: RotatingPostgres,
) -> None:
    async with Lessor(postgres, 3.0) as lessor:
        short, long = await lessor.lease(), await lessor.lease(seconds=500)
        source = ScriptedSource(CredentialPair(short, None), interval=0)
        async with aiopqr.create_pool(postgres.dsn, credentials=source, min_size=0, max_size=2) as pool:
            with pool._replacement.spare_wanted():
                await eventually(lambda: pool._replacement.spare)
            spare = pool._replacement.spare
            assert spare
            source.pair = CredentialPair(short, long)
            await pool.refresh()
            assert not pool._connections.is_spoilt(spare)
            await eventually(lambda: pool._connections.is_spoilt(spare))
            assert await pool.fetchval("SELECT session_user") == long.username


async def test_an_acquire_that_gives_up_says_since_when_all_is_expired_and_why_nothing_newer_comes(
    postgres: RotatingPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lessor(postgres, 1.0) as lessor:
        account = await lessor.lease()
        source = ScriptedSource(CredentialPair.single(account), interval=0)
        async with aiopqr.create_pool(
            postgres.dsn, credentials=source, min_size=1, max_size=2, name="orders", acquire_timeout=0.5
        ) as pool:
            source.error = SourceError("the vault is sealed")
            await eventually(lambda: any("expired" in record.message for record in caplog.records))
            await eventually(lambda: pool.stats().size == 0)
            with pytest.raises(aiopqr.AcquireTimeout) as caught:
                await pool.fetchval("SELECT 1")
        why = caught.value.__cause__
        assert isinstance(why, aiopqr.CredentialsExpired)
        assert re.fullmatch(
            rf"orders: the credentials have expired \({account.username} \d+ s ago\), and newer ones cannot be "
            "fetched: SourceError: the vault is sealed",
            str(why),
        )
        assert str(why) in str(caught.value)
        logged = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert re.search(rf"{account.username} expired \d+ s ago and are not used until", logged[0])


async def test_an_account_that_a_store_names_no_more_is_drained_at_once_if_it_is_not_to_be_kept(
    postgres: RotatingPostgres,
) -> None:
    odd, even = postgres.pair.odd, postgres.pair.even
    assert odd
    assert even
    for keeps in (True, False):
        source = ScriptedSource(CredentialPair.single(odd))
        async with aiopqr.create_pool(
            postgres.dsn, credentials=source, min_size=2, max_size=2, keep_renamed=keeps
        ) as pool:
            source.pair = CredentialPair.single(even)
            await pool.refresh()
            assert pool._connector.pair.last_resort == (odd if keeps else None)
            if not keeps:
                await eventually(lambda: pool.stats().replacements.why.get("superseded") == 2)


async def test_a_username_that_left_is_drained_at_once_whatever_the_lifetime(postgres: RotatingPostgres) -> None:
    odd, even = postgres.pair.odd, postgres.pair.even
    assert odd
    assert even
    source = ScriptedSource(CredentialPair(odd, None))
    async with aiopqr.create_pool(postgres.dsn, credentials=source, min_size=3, max_size=3) as pool:
        held = await pool.acquire()
        source.pair = CredentialPair(None, even)
        await pool.refresh()
        await eventually(lambda: pool.stats().replacements.why.get("superseded") == 2)
        assert await held.fetchval("SELECT session_user") == odd.username, "what is in use is replaced on its release"
        await pool.release(held)
        await eventually(lambda: pool.stats().accounts[Parity.ODD].open == 0)
        assert isinstance(held, asyncpg.pool.PoolConnectionProxy)
