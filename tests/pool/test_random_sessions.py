"""Sessions that are used at random, on the real server: no checkout ever finds traces of the one before it.

For 2 seconds each way, and for a minute as a proof; with ``--loop=uvloop`` on the other event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from support.pgbouncer import PgBouncer

import aiopqr
from aiopqr.testing import EmbeddedPostgres, PostgresServer, RotatingPostgres
from aiopqr.testing.server import run_apart

SECONDS = 60.0 if os.environ.get("AIOPQR_PROOF") else 2.0
TASKS = 20
CLEAN = ("4MB", "", 0, 0, 0, None)
STATE = """
    SELECT current_setting('work_mem'), current_setting('application_name'),
           (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
           (SELECT count(*) FROM pg_cursors WHERE statement NOT LIKE '%pg_cursors%'),
           pg_current_xact_id_if_assigned()::text
"""


@pytest.fixture(scope="session")
def aiopqr_server() -> Iterator[PostgresServer]:
    """A server that speaks TLS. (The embedded one does not.)"""
    with EmbeddedPostgres("system") as server:
        run_apart(server.enable_tls())
        yield server


class User:
    """One task that takes a connection again and again, and leaves it in any state."""

    def __init__(self, pool: aiopqr.AlternatingPool, seed: int, done: Counter[str]) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.done = done
        self.deeds = [
            self.change_settings, self.listen, self.lock, self.hold_cursor, self.copy_out, self.copy_in, self.fail,
            self.leave_transaction, self.query, self.nothing, self.be_terminated,
        ]  # fmt: skip

    async def run(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            try:
                await self.checkout()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
                self.done["failed"] += 1  # in a transaction that had failed, on a session that was terminated...

    async def checkout(self) -> None:
        con = await self.pool.acquire()
        try:
            state = tuple(await con.fetchrow(STATE))
            assert state == CLEAN, f"a checkout found {state}"
            for deed in self.random.choices(
                self.deeds, [4, 4, 4, 4, 3, 3, 4, 4, 6, 4, 0.2], k=self.random.randint(1, 3)
            ):
                self.done[deed.__name__] += 1
                # asyncpg itself hangs after a COPY that was cancelled while its receiver was running.
                await (deed(con) if deed == self.copy_out else self.perhaps_cancelled(deed(con)))
        finally:
            await self.perhaps_cancelled(self.pool.release(con))

    async def perhaps_cancelled(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        if self.random.random() < 0.15:
            for _ in range(self.random.randint(1, 5)):  # a coroutine that never began would release nothing
                await asyncio.sleep(0)
            task.cancel()
            self.done["cancelled"] += 1
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # What a task may do.

    async def change_settings(self, con: Any) -> None:
        await con.execute("SET work_mem = '1MB'; SET application_name = 'changed'")

    async def listen(self, con: Any) -> None:
        await con.add_listener("news", lambda *_: None)
        await con.execute("NOTIFY news, 'from here'")

    async def lock(self, con: Any) -> None:
        await con.execute(f"SELECT pg_advisory_lock_shared({self.random.randint(1, 5)})")

    async def hold_cursor(self, con: Any) -> None:
        await con.execute(f"DECLARE c{self.random.randrange(1 << 30)} CURSOR WITH HOLD FOR SELECT 1")

    async def copy_out(self, con: Any) -> None:
        async def sink(data: bytes) -> None:
            await asyncio.sleep(0)

        await con.copy_from_query("SELECT repeat('x', 1000) FROM generate_series(1, 100)", output=sink)

    async def copy_in(self, con: Any) -> None:
        await con.copy_records_to_table("things", records=[(number,) for number in range(100)])

    async def fail(self, con: Any) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with con.transaction():
                await con.execute("SELECT 1 / 0")

    async def leave_transaction(self, con: Any) -> None:
        await con.execute("BEGIN; DECLARE left_open CURSOR FOR SELECT 1; INSERT INTO things VALUES (1)")

    async def query(self, con: Any) -> None:
        await con.fetchval("SELECT $1::int", 1)

    async def nothing(self, con: Any) -> None:
        await asyncio.sleep(0)

    async def be_terminated(self, con: Any) -> None:
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await con.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.proof
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("way", ["plain", "tls", "pgbouncer"])
@pytest.mark.parametrize("mode", ["full", "deferred"])
async def test_a_checkout_finds_nothing_of_the_one_before(mode: str, way: str, postgres: RotatingPostgres) -> None:
    done: Counter[str] = Counter()
    seed = random.randrange(1 << 30)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # asyncpg reports transactions that were left open
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", asyncpg.InterfaceWarning)  # and listeners
        dsn = postgres.server.dsn_of(postgres.database, sslmode="require" if way == "tls" else "disable")
        if way == "pgbouncer":
            bouncer = await stack.enter_async_context(PgBouncer(postgres.server, pool_mode="session"))
            dsn = bouncer.dsn_of(postgres.database)
        async with aiopqr.create_pool(
            dsn,
            credentials=postgres.source,
            min_size=2,
            max_size=8,
            session_reset=mode,
            max_lifetime=1.0,
            reset_timeout=5.0,
        ) as pool:
            await pool.execute("CREATE TABLE things (id int); GRANT ALL ON things TO public")
            until = loop.time() + SECONDS
            async with asyncio.TaskGroup() as group:
                for number in range(TASKS):
                    group.create_task(User(pool, seed + number, done).run(until), name=f"user-{number}")
            async with asyncio.timeout(10):
                while pool.stats().in_use:
                    await asyncio.sleep(0.01)
                held = [await pool.acquire() for _ in range(pool.get_max_size())]
                for con in held:
                    await pool.release(con)
    print(f"\n{mode}, {way}, seed {seed}: {dict(done)}")
