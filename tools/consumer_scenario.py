"""One package that uses asyncpg, on our pool by the documentation's recipe, while both passwords change.

Run by `make consumers`, as `python tools/consumer_scenario.py PACKAGE` in an empty folder, with a Python that has
the package.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiopqr
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres

GUIDES = Path(__file__).parent.parent / "docs/guides"
PAGES = (GUIDES / "consumers.md", GUIDES / "sqlalchemy.md")
#: Uses the package once; raises if it does not work.
Work = Callable[[], Awaitable[object]]

# Each opens a package by its recipe.


@asynccontextmanager
async def pgqueuer(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    async with recipe("worker").main() as queue:
        await queue.queries.install()
        running = asyncio.create_task(queue.run(), name="worker")

        async def work() -> None:
            await queue.queries.enqueue("greet", b"hello")
            await eventually(
                lambda: no_job_left(queue)
            )  # well before the 30 seconds after which pgqueuer looks by itself

        async def no_job_left(queue: Any) -> bool:
            assert not running.done(), running
            return not any(row.count for row in await queue.queries.queue_size())

        yield work
        queue.shutdown.set()
        await running


@asynccontextmanager
async def tortoise(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    from tortoise import Tortoise, fields
    from tortoise.models import Model
    from tortoise.transactions import in_transaction

    class Order(Model):
        id = fields.IntField(primary_key=True)
        what = fields.TextField()

    Order.__module__ = "models"
    sys.modules["models"] = module = type(sys)("models")
    module.Order = Order  # type: ignore[attr-defined]
    dsn = urlsplit(os.environ["DATABASE_URL"])
    where = (dsn.hostname, dsn.port, dsn.path[1:])
    sys.modules["tortoise_aiopqr"] = recipe("tortoise_aiopqr")
    await recipe("database").start(*where, os.environ["CREDENTIALS_FILE"])
    await Tortoise.generate_schemas()

    async def work() -> None:
        async with in_transaction():
            made = await Order.create(what="tea")
            await Order.filter(id=made.id).update(what="coffee")
        assert (await Order.get(id=made.id)).what == "coffee"

    yield work
    await Tortoise.close_connections()


@asynccontextmanager
async def piccolo(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    from piccolo.columns import Text
    from piccolo.table import Table

    engine = recipe("piccolo_conf").DB

    class Order(Table, db=engine):
        what = Text()

    await Order.create_table()  # without a pool, as migrations do
    await engine.start_connection_pool(min_size=1, max_size=4)

    async def work() -> None:
        async with engine.transaction():
            await Order(what="tea").save()
        assert await Order.count()
        async with await Order.select().batch(batch_size=10) as batch:  # a connection of its own
            assert [order async for orders in batch for order in orders]

    yield work
    await engine.close_connection_pool()


@asynccontextmanager
async def litestar(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    import httpx

    app = recipe("app").app
    async with app.lifespan(), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def work() -> None:
            answer = await client.get("/whoami")
            assert answer.status_code == 200, answer.text

        yield work


@asynccontextmanager
async def taskiq(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    from taskiq.api import run_receiver_task

    module = recipe("broker")
    await module.broker.startup()
    receiving = asyncio.create_task(run_receiver_task(module.broker), name="receiver")

    async def work() -> None:
        task = await module.greet.kiq("you")
        result = await task.wait_result(timeout=10)
        assert result.return_value == "hello you", result

    yield work
    receiving.cancel()
    await asyncio.wait({receiving})
    await module.broker.shutdown()


@asynccontextmanager
async def alembic(postgres: RotatingPostgres) -> AsyncIterator[Work]:
    from alembic import command
    from alembic.config import Config

    os.environ["DATABASE_URL"] = postgres.dsn.replace("postgresql", "postgresql+asyncpg", 1)
    take("migrations/env.py")
    write("migrations/versions/first.py", MIGRATION)
    config = Config()
    config.set_main_option("script_location", "migrations")

    async def work() -> None:
        await asyncio.to_thread(command.upgrade, config, "head")
        await asyncio.to_thread(command.downgrade, config, "base")

    # A migration is at work when both passwords change.
    holder = await postgres.server.admin_connect(postgres.database)
    await holder.execute("select pg_advisory_lock(1)")
    upgrading = asyncio.create_task(asyncio.to_thread(command.upgrade, config, "head"))
    await eventually(lambda: holder.fetchval("select true from pg_locks where locktype = 'advisory' and not granted"))
    publish(await postgres.rotate_both(store_delay=None))
    await holder.execute("select pg_advisory_unlock(1)")
    await upgrading
    assert await holder.fetchval("select version_num from alembic_version") == "first"
    await holder.close()
    await asyncio.to_thread(command.downgrade, config, "base")
    yield work


MIGRATION = """
from alembic import op

revision, down_revision = "first", None


def upgrade():
    op.execute("select pg_advisory_xact_lock(1)")
    op.execute("create table orders (id int)")


def downgrade():
    op.execute("drop table orders")
"""
CONSUMERS: dict[str, Callable[[RotatingPostgres], AbstractAsyncContextManager[Work]]] = {
    each.__name__: each for each in (pgqueuer, tortoise, piccolo, litestar, taskiq, alembic)
}
#: What listens on a connection of its own that it makes anew, by its recipe.
LISTENS_AGAIN = {"taskiq"}
END_THE_LISTENER = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query ilike 'listen%'"


def recipe(name: str) -> Any:
    """The module of that name, as it stands in the documentation."""
    take(f"{name}.py")
    return importlib.import_module(name)


def take(file: str) -> None:
    """Write a file as it stands in the documentation."""
    pages = "".join(page.read_text() for page in PAGES)
    found = re.search(rf'^```python title="{file}"\n(.*?)^```', pages, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no page has {file}"
    write(file, found[1])


def write(file: str, text: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text)


async def eventually(fact: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(15):
        while True:
            if await fact():
                return
            await asyncio.sleep(0.02)


def publish(pair: aiopqr.CredentialPair) -> None:
    keys = {"active_credential": "odd"}
    for parity in aiopqr.Parity:
        account = pair[parity]
        assert account
        keys |= {f"{parity}_username": account.username, f"{parity}_password": account.password.reveal()}
    new = Path("pair.new")
    new.write_text(json.dumps(keys))
    new.replace(os.environ["CREDENTIALS_FILE"])


async def rotate(
    account: str, postgres: RotatingPostgres, pools: list[aiopqr.AlternatingPool[Any]], work: Work
) -> None:
    """Change one password, and only then the file. The package is used before, between and after."""
    since = await postgres.server.fetchval("select now()")

    async def work_with_new_connections() -> None:
        for pool in pools:
            await pool.expire_connections()
        await work()

    async def is_in_use_again() -> bool:
        await work_with_new_connections()
        return not pools or any(session["backend_start"] > since for session in await postgres.sessions(account))

    await work()
    pair = await postgres.rotate(account, store_delay=None)
    await work_with_new_connections()
    publish(pair)
    for pool in pools:
        await pool.refresh()
    refused = postgres.failed_logins()
    await eventually(is_in_use_again)
    assert postgres.failed_logins() == refused


async def scenario(name: str) -> None:
    pools: list[aiopqr.AlternatingPool[Any]] = []
    create_pool = aiopqr.create_pool

    def remembering(*args: Any, **kwargs: Any) -> aiopqr.AlternatingPool[Any]:
        pools.append(create_pool(*args, **kwargs))
        return pools[-1]

    aiopqr.create_pool = remembering  # type: ignore[assignment]
    async with EmbeddedPostgres() as server:
        postgres = await RotatingPostgres.create(server)
        os.environ.update(DATABASE_URL=postgres.dsn, CREDENTIALS_FILE=os.path.join(os.getcwd(), "pair.json"))
        publish(postgres.pair)
        async with CONSUMERS[name](postgres) as work:
            for account in ("odd", "even", "odd"):
                await rotate(account, postgres, pools, work)
            if name in LISTENS_AGAIN:
                assert await server.fetchval(END_THE_LISTENER) == 1
                await work()
        await postgres.drop()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    asyncio.run(scenario(sys.argv[1]))
