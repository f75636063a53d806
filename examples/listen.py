"""LISTEN on a dedicated connection that reconnects by itself after a restart, a failover or a changed password.

    python examples/listen.py

Do not listen on a pool's connection, since the pool resets and replaces it. A Connector makes one that is yours alone.
Postgres does not keep notifications for clients that are away, so read your table again after each (re)connect. The
second half of this file ends the session and changes passwords on its own Postgres, and exits.
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
    """Call ``on_notify`` with each payload until cancelled. Await ``on_connect`` when some may have been missed.

    connect() waits up to a minute for an outage to end, or for newer credentials. What it raises then is passed on.
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
                await con.execute("select 1")  # only a query shows that the server has silently gone away
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError):
            pass  # lost (a TimeoutError is an OSError): connect again
        finally:
            con.terminate()


# The rest is a demonstration: it notifies, ends the session, and changes passwords.


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
