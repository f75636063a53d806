"""LISTEN on a connection of its own, which comes back by itself: after a restart, a failover or a changed password.

    python examples/listen.py

A pool's connection is no place to listen: it is given back, reset and replaced. A Connector makes one that is yours.
Postgres keeps no notifications for who is away, so what is read again after each (re)connect is the table, not the
channel. The second half ends the session and changes passwords on a Postgres of its own, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import asyncpg

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


async def listen(
    connector: aiopqr.Connector,
    channel: str,
    on_notify: Callable[[str], None],
    on_connect: Callable[[], Awaitable[None]],
) -> None:
    """Call ``on_notify`` with each payload until cancelled. ``on_connect`` is awaited whenever some may be missing.

    connect() waits out an outage, and newer credentials, for a minute; what it raises then is raised.
    """
    while True:
        con = await connector.connect(command_timeout=10.0)
        try:
            lost = asyncio.Event()
            con.add_termination_listener(lambda _, lost=lost: lost.set())
            await con.add_listener(channel, lambda _con, _pid, _channel, payload: on_notify(str(payload)))
            await on_connect()
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(30.0):
                        await lost.wait()
                        break
                await con.execute("select 1")  # a peer that is gone without a word is noticed by asking
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError):
            pass  # lost (a TimeoutError is an OSError): connect again
        finally:
            con.terminate()


# From here on: notifications, a session that ends, and passwords that change.


async def show(database: RotatingPostgres) -> None:
    got: asyncio.Queue[str] = asyncio.Queue()

    async def catch_up() -> None:
        got.put_nowait("(listening)")

    async with (
        aiopqr.Connector(database.dsn, credentials=database.source) as connector,
        aiopqr.create_pool(database.dsn, credentials=database.source, min_size=1, max_size=2) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        listening = tasks.create_task(listen(connector, "orders", got.put_nowait, catch_up), name="listen")
        print("listener:", await got.get())
        for account in ("odd", "even", "odd"):
            await pool.execute("select pg_notify('orders', $1)", f"before {account} is changed")
            print("listener:", await got.get())
            await database.rotate(account)
            await database.server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%' and datname = $1",
                database.database,
            )
            print("listener:", await got.get())
            await pool.execute("select pg_notify('orders', $1)", f"after {account} is changed")
            print("listener:", await got.get())
        listening.cancel()


async def main() -> None:
    async with EmbeddedPostgres() as server:
        await show(await RotatingPostgres.create(server))


if __name__ == "__main__":
    asyncio.run(main())
