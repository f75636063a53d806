"""Runs the demo: pools under load while passwords change.

It knows nothing of the command line or of drawing, so that tests can run it with their own screen.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Protocol

from ...credentials import Parity
from ...events import Event
from .environment import COINS, WALLETS, Environment, PasswordChange, open_environment, schedule
from .load import Tally, work
from .pools import Contestant, Options, alternating, plain
from .result import DemoResult, Figures
from .words import log_to, sentence

_WATCH_EVERY = 0.25
_LAST_OPERATIONS = 10.0  # seconds in which operations can finish at the end


class Screen(Protocol):
    """Shows the run."""

    def show(self, at: float, text: str, kind: str) -> None:
        """Show what happened after ``at`` seconds. ``kind`` is ``rotation``, ``good``, ``bad`` or ``note``."""
        ...

    async def draw(self, run: Demo) -> None:
        """Draw the current state. Called a few times a second."""
        ...


class Demo:
    """One demo, from the first connection to the result."""

    def __init__(self, options: Options, environment: Environment, screen: Screen) -> None:
        self.options = options
        self.environment = environment
        self.screen = screen
        self.plan = schedule(options.seconds, options.every, single=options.single)
        self.done: list[tuple[float, PasswordChange]] = []
        self.contestants: list[Contestant] = []
        self.started = time.perf_counter()
        self.stopped: float | None = None

    @property
    def at(self) -> float:
        """Seconds since the start."""
        return (self.stopped or time.perf_counter()) - self.started

    async def play(self, stop: asyncio.Event) -> DemoResult:
        """Run to the end, or until ``stop`` is set, and return the result."""
        async with contextlib.AsyncExitStack() as pools:
            ours = alternating(self.environment, self.options, self._on_event)
            self.contestants.append(await pools.enter_async_context(ours))
            if self.options.compare:
                self.contestants.append(await pools.enter_async_context(plain(self.environment, self.options)))
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
        return DemoResult(
            seconds=self.at,
            interrupted=stop.is_set(),
            server=f"Postgres {self.environment.server.version}",
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

    # Tasks that run beside the load.

    async def _rotate(self) -> None:
        for rotation in self.plan:
            await asyncio.sleep(rotation.at - self.at)
            at = self.at
            self.done.append((at, rotation))
            if rotation.store_delay:
                whose = "both passwords changed at once" if rotation.is_both else "the password changed"
                text = f"{whose}; the file follows {rotation.store_delay:g} s later"
            else:
                text = f"{rotation.parities[0]}'s password changed, and the file right after it"
            self.screen.show(at, text, "rotation")
            await self.environment.rotate(rotation)
            if rotation.store_delay:
                self.screen.show(self.at, "the file is up to date again", "note")

    async def _watch(self) -> None:
        while True:
            self._observe()
            await self.screen.draw(self)
            await asyncio.sleep(_WATCH_EVERY)

    def _observe(self) -> None:
        refused = self.environment.refused_logins()
        for one in self.contestants:
            slot = one.tally.slot
            slot.odd, slot.even = one.open()
            one.most_open = max(one.most_open, slot.odd + slot.even)
            if refused is not None:
                one.refused = refused[one.database]
            if one.tally.errors and not one.has_failed:
                one.has_failed = True
                error = next(iter(one.tally.errors))
                self.screen.show(self.at, f"{one.name}: operations are failing with {error}", "bad")

    def _on_event(self, event: Event) -> None:
        if line := sentence(event):
            self.screen.show(self.at, *line)

    # After the load.

    async def _figures(self, one: Contestant) -> Figures:
        coins, transfers = await self.environment.count(one.database)
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
            # An operation that failed may still have been committed.
            books_balance=coins == WALLETS * COINS and 0 <= transfers - tally.transfers <= tally.failed,
            **figures,
        )


async def perform(options: Options, screen: Screen, stop: asyncio.Event) -> tuple[Demo | None, DemoResult | None]:
    """Set up the environment, run the demo, and clean up.

    If ``stop`` is set before the load begins, there is no result.
    """
    async with open_environment(options.dsn, 1 + options.compare, single=options.single) as environment:
        if stop.is_set():
            return None, None
        run = Demo(options, environment, screen)
        with log_to(screen.show, run.started):
            return run, await run.play(stop)
