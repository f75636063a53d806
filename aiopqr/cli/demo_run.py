"""The demo itself: pools under load while passwords change, watched by whoever draws it.

Apart from the command line and from the drawing, so that tests run it as the command does, on a console of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg

from .. import AlternatingPool, Parity
from ..events import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    ConnectionLost,
    Event,
    FellBack,
    Refreshed,
    RefreshFailed,
    ReplacementDelayed,
    ServerRecovered,
    ServerUnavailable,
)
from ..sources import FileSource
from .demo_load import Tally, work
from .demo_stage import COINS, WALLETS, Rotation, Stage, open_stage, schedule
from .demo_verdict import Figures, Verdict

_WATCH_EVERY = 0.25
_LAST_OPERATIONS = 10.0  # seconds that the operations in flight at the end get


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. Times are in seconds."""

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
    """A pool under load, and what came of it."""

    name: str
    pool: asyncpg.Pool[asyncpg.Record]
    database: str
    tally: Tally = field(default_factory=Tally)
    most_open: int = 0
    refused: int | None = None  # by the server's log
    has_failed: bool = False

    @property
    def alternating(self) -> AlternatingPool | None:
        return self.pool if isinstance(self.pool, AlternatingPool) else None

    def open(self) -> tuple[int, int]:
        """Open connections of odd and of even, a spare included."""
        if pool := self.alternating:
            accounts = pool.stats().accounts
            return accounts[Parity.ODD].open, accounts[Parity.EVEN].open
        return self.pool.get_size(), 0

    def refused_logins(self) -> int:
        """By the server's log, or where that cannot be read, as far as the pool met them."""
        if self.refused is not None:
            return self.refused
        if pool := self.alternating:
            return sum(account.refused for account in pool.stats().accounts.values())
        return self.tally.errors["InvalidPasswordError"]


class Screen(Protocol):
    """Who draws the run."""

    def tell(self, at: float, text: str, kind: str) -> None:
        """Something happened ``at`` seconds: a ``rotation``, a ``good`` or a ``bad`` thing, or a ``note``."""
        ...

    async def draw(self, run: Run) -> None:
        """Called some times a second."""
        ...


class Run:
    """One demo, from the first connection to the verdict."""

    def __init__(self, options: Options, stage: Stage, screen: Screen) -> None:
        self.options = options
        self.stage = stage
        self.screen = screen
        self.plan = schedule(options.seconds, options.every, single=options.single)
        self.done: list[tuple[float, Rotation]] = []
        self.contestants: list[Contestant] = []
        self.started = time.perf_counter()
        self.stopped: float | None = None

    @property
    def at(self) -> float:
        """Seconds since the start."""
        return (self.stopped or time.perf_counter()) - self.started

    async def play(self, stop: asyncio.Event) -> Verdict:
        """Run to the end, or until ``stop``, and judge."""
        async with contextlib.AsyncExitStack() as pools:
            for opening in (self._alternating, self._plain)[: 1 + self.options.compare]:
                self.contestants.append(await pools.enter_async_context(opening()))
            self.started = time.perf_counter()
            for contestant in self.contestants:
                contestant.tally = Tally()
            async with asyncio.TaskGroup() as group:
                aside = [group.create_task(self._rotate()), group.create_task(self._watch())]
                until = asyncio.Event()
                workers = [
                    group.create_task(work(contestant.pool, contestant.tally, until, seed))
                    for contestant in self.contestants
                    for seed in range(self.options.workers)
                ]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self.options.seconds)
                self.stopped = time.perf_counter()
                until.set()
                _, hanging = await asyncio.wait(workers, timeout=_LAST_OPERATIONS)
                for task in (*aside, *hanging):
                    task.cancel()
            self._observe()
            await self.screen.draw(self)
            counted = [await self._figures(one) for one in self.contestants]
        return Verdict(
            seconds=self.at,
            interrupted=stop.is_set(),
            server=f"Postgres {self.stage.server.version}",
            workers=self.options.workers,
            connections=self.options.connections,
            lifetime=self.options.lifetime,
            planned=len(self.plan),
            odd=sum(rotation.parities == (Parity.ODD,) for _, rotation in self.done),
            even=sum(rotation.parities == (Parity.EVEN,) for _, rotation in self.done),
            both=sum(rotation.is_both for _, rotation in self.done),
            behind=max((rotation.store_delay for rotation in self.plan), default=0.0),
            ours=counted[0],
            plain=counted[1] if self.options.compare else None,
            single=self.options.single,
        )

    # The contestants.

    @contextlib.asynccontextmanager
    async def _alternating(self) -> AsyncIterator[Contestant]:
        database, size = self.stage.databases[0], self.options.connections
        pool = AlternatingPool(
            self.stage.server.dsn_of(database),
            credentials=FileSource(self.stage.file),
            max_lifetime=self.options.lifetime,
            max_lifetime_jitter=self.options.lifetime / 2,  # so that some connection is made at every moment
            min_size=size,
            max_size=size,
            name="demo",
            listeners=[self._heard],
        )
        async with pool:
            yield Contestant("aiopqr", pool, database)

    @contextlib.asynccontextmanager
    async def _plain(self) -> AsyncIterator[Contestant]:
        """What users of asyncpg's pool can have: one account, its password read for each connect, the same lifetime."""
        database, size = self.stage.databases[1], self.options.connections
        account = self.stage.pair.odd
        assert account is not None
        source = FileSource(self.stage.file)

        async def password() -> str:
            odd = (await source.fetch()).odd
            assert odd is not None
            return odd.password.reveal()

        pool = await asyncpg.create_pool(
            self.stage.server.dsn_of(database),
            user=account.username,
            password=password,
            min_size=size,
            max_size=size,
        )

        async def recycle() -> None:
            while True:
                await asyncio.sleep(self.options.lifetime)
                await pool.expire_connections()

        recycling = asyncio.create_task(recycle(), name="aiopqr-demo-recycle")
        try:
            yield Contestant("asyncpg's pool", pool, database)
        finally:
            recycling.cancel()
            pool.terminate()
            await asyncio.wait({recycling})

    # What goes on meanwhile.

    async def _rotate(self) -> None:
        for rotation in self.plan:
            await asyncio.sleep(rotation.at - self.at)
            at = self.at
            self.done.append((at, rotation))
            if rotation.store_delay:
                whose = "both passwords changed at once" if rotation.is_both else "the password changed"
                text = f"{whose}; the file follows {rotation.store_delay:g} s later"
            else:
                text = f"{rotation.parities[0]}'s password changed, and then the file"
            self.screen.tell(at, text, "rotation")
            await self.stage.rotate(rotation)
            if rotation.store_delay:
                self.screen.tell(self.at, "the file has caught up", "note")

    async def _watch(self) -> None:
        while True:
            self._observe()
            await self.screen.draw(self)
            await asyncio.sleep(_WATCH_EVERY)

    def _observe(self) -> None:
        refused = self.stage.refused_logins()
        for one in self.contestants:
            slot = one.tally.slot
            slot.odd, slot.even = one.open()
            one.most_open = max(one.most_open, slot.odd + slot.even)
            if refused is not None:
                one.refused = refused[one.database]
            if one.tally.errors and not one.has_failed:
                one.has_failed = True
                self.screen.tell(self.at, f"{one.name}: operations fail, {next(iter(one.tally.errors))}", "bad")

    def _heard(self, event: Event) -> None:
        if told := sentence(event):
            self.screen.tell(self.at, *told)

    # The end.

    async def _figures(self, one: Contestant) -> Figures:
        coins, transfers = await self.stage.count(one.database)
        tally = one.tally
        figures: dict[str, Any] = {}
        if pool := one.alternating:
            stats = pool.stats()
            figures = {
                "opened_odd": stats.accounts[Parity.ODD].opened,
                "opened_even": stats.accounts[Parity.EVEN].opened,
                "fallbacks": stats.fallbacks,
                "replaced": stats.replacements.done,
            }
        return Figures(
            name=one.name,
            operations=tally.operations,
            failed=tally.failed,
            errors=dict(tally.errors.most_common()),
            p50=tally.waits.percentile(0.5),
            p99=tally.waits.percentile(0.99),
            p999=tally.waits.percentile(0.999),
            worst=tally.waits.worst,
            silence=tally.silence(self.at),
            refused=one.refused_logins(),
            by_log=one.refused is not None,
            most_open=one.most_open,
            transfers=tally.transfers,
            # An operation that failed may have been committed all the same.
            books_balance=coins == WALLETS * COINS and 0 <= transfers - tally.transfers <= tally.failed,
            **figures,
        )


def sentence(event: Event) -> tuple[str, str] | None:
    """An event of the pool, in words for the screen, and of what kind it is."""
    match event:
        case AccountQuarantined():
            return f"the server refused {event.parity}: set aside until a new password comes", "note"
        case FellBack():
            return f"the connect fell back to {event.parity}, in the same breath", "good"
        case AllRefused():
            return "every account is refused: open connections serve on, and connects wait", "note"
        case Refreshed():
            return f"read the new password of {' and '.join(event.changed)} from the file", "good"
        case AccountRecovered():
            return f"{event.parity} logs in again, {event.after:.1f} s after its refusal", "good"
        case ReplacementDelayed():
            return "no replacement to be had yet: connections outlive their lifetime", "note"
        case RefreshFailed() | ServerUnavailable():
            return event.error, "bad"
        case ServerRecovered():
            return f"the server answers again, after {event.after:.1f} s", "good"
        case ConnectionLost():
            return f"a connection was lost: {event.error}", "bad"
    return None


@contextlib.contextmanager
def log_to(screen: Screen, started: float) -> Iterator[None]:
    """Show log warnings inside the screen, which they would garble otherwise; events are shown there already."""

    class ToScreen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # asyncpg's pool tells of every login that its own upkeep fails with; they are counted.
            if not hasattr(record, "event") and record.name != "asyncpg.pool":
                screen.tell(time.perf_counter() - started, record.getMessage().splitlines()[0], "bad")

    handler = ToScreen(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)


async def perform(options: Options, screen: Screen, stop: asyncio.Event) -> tuple[Run | None, Verdict | None]:
    """Set the stage, play, clear it. Ended early by ``stop``, before there was anything to judge: no verdict."""
    async with open_stage(options.dsn, 1 + options.compare, single=options.single) as stage:
        if stop.is_set():
            return None, None
        run = Run(options, stage, screen)
        with log_to(screen, run.started):
            return run, await run.play(stop)
