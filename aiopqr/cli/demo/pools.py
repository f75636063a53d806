"""The pools that the demo puts under load: ours, and asyncpg's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import asyncpg

from ... import AlternatingPool, Parity
from ...events import Event
from ...sources import FileSource
from .environment import Environment
from .load import Tally


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line. Times are in seconds."""

    seconds: float = 30.0
    every: float = 3.3
    lifetime: float = 2.0
    workers: int = 20
    connections: int = 10
    dsn: str | None = None
    compare: bool = False
    single: bool = False


@dataclass(slots=True)
class Contestant:
    """A pool under load, and its results."""

    name: str
    pool: asyncpg.Pool[asyncpg.Record]
    database: str
    tally: Tally = field(default_factory=Tally)
    most_open: int = 0
    refused: int | None = None  # according to the server's log
    has_failed: bool = False

    @property
    def alternating(self) -> AlternatingPool | None:
        return self.pool if isinstance(self.pool, AlternatingPool) else None

    def open(self) -> tuple[int, int]:
        """How many connections of odd and of even are open, including a spare."""
        if pool := self.alternating:
            accounts = pool.stats().accounts
            return accounts[Parity.ODD].open, accounts[Parity.EVEN].open
        return self.pool.get_size(), 0

    def refused_logins(self) -> int:
        """How many logins were refused: by the server's log or, if that cannot be read, as seen by the pool."""
        if self.refused is not None:
            return self.refused
        if pool := self.alternating:
            return sum(account.refused for account in pool.stats().accounts.values())
        return self.tally.errors["InvalidPasswordError"]


@contextlib.asynccontextmanager
async def alternating(
    environment: Environment, options: Options, listener: Callable[[Event], None]
) -> AsyncIterator[Contestant]:
    """Our pool, with two accounts whose passwords it reads from the file."""
    database, size = environment.databases[0], options.connections
    pool = AlternatingPool(
        environment.server.dsn_of(database),
        credentials=FileSource(environment.file),
        max_lifetime=options.lifetime,
        max_lifetime_jitter=options.lifetime / 2,  # so that connections are opened all the time
        min_size=size,
        max_size=size,
        name="demo",
        listeners=[listener],
    )
    async with pool:
        yield Contestant("aiopqr", pool, database)


@contextlib.asynccontextmanager
async def plain(environment: Environment, options: Options) -> AsyncIterator[Contestant]:
    """The best that asyncpg's pool can do: one account, its password read for each connect, and the same lifetime."""
    database, size = environment.databases[1], options.connections
    account = environment.pair.odd
    assert account is not None
    source = FileSource(environment.file)

    async def password() -> str:
        odd = (await source.fetch()).odd
        assert odd is not None
        return odd.password.reveal()

    pool = await asyncpg.create_pool(
        environment.server.dsn_of(database),
        user=account.username,
        password=password,
        min_size=size,
        max_size=size,
    )

    async def recycle() -> None:
        while True:
            await asyncio.sleep(options.lifetime)
            await pool.expire_connections()

    recycling = asyncio.create_task(recycle(), name="aiopqr-demo-recycle")
    try:
        yield Contestant("asyncpg's pool", pool, database)
    finally:
        recycling.cancel()
        pool.terminate()
        await asyncio.wait({recycling})
