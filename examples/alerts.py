"""A listener that writes structured log lines about what an operator should know early. Copy it and adapt it.

    python examples/alerts.py

Each alert is one line of JSON, ready for a log shipper; a `resolved` line follows when it is over. The second half
triggers most of the alerts on its own Postgres, with limits of a fraction of a second. It takes about 15 seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import aiopqr
from aiopqr import events
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


class Alerts:
    """A listener. Limits are in seconds: how long one account may be refused, and how old the pair may get."""

    def __init__(
        self,
        write: Callable[[str], object] = sys.stderr.write,
        *,
        max_refused: float = 300.0,
        max_pair_age: float = 900.0,
    ) -> None:
        self._write = write
        self._max_refused = max_refused
        self._max_pair_age = max_pair_age
        self._refused: dict[str, asyncio.TimerHandle] = {}
        self._firing: set[str] = set()

    def __call__(self, event: events.Event) -> None:
        """This is called on the event loop, so it must not block."""
        match event:
            case events.AccountQuarantined():
                self._watch(event)
            case events.AccountRecovered():
                self._works(event.name, event.parity)
            case events.Refreshed():
                # A new password counts as good. If it is refused as well, AccountQuarantined comes again.
                for parity in event.changed:
                    self._works(event.name, parity)
                self._resolve("all_refused", event.name)
                self._resolve("pair_too_old", event.name)
            case events.AllRefused():
                self._fire("all_refused", event.name, "critical", pair_age=event.pair_age)
            case events.RefreshFailed():
                self._tell("refresh_failed", event.name, "warning", error=event.error, failures=event.failures)
                if event.failures == 1:  # the store worked in between, but had nothing new
                    self._resolve("pair_too_old", event.name)
                if event.pair_age is not None and event.pair_age > self._max_pair_age:
                    self._fire("pair_too_old", event.name, "warning", pair_age=event.pair_age)
            case events.ReplacementDelayed():
                self._tell("replacement_delayed", event.name, "warning", error=event.error, overdue=event.overdue)
            case events.PairDegraded():
                self._tell("pair_degraded", event.name, "warning", missing=event.missing)
            case events.ServerUnavailable():
                self._tell("server_unavailable", event.name, "warning", error=event.error)
            case events.LeakSuspected():
                self._tell("leak_suspected", event.name, "warning", held=event.held, stack=event.stack)

    def close(self) -> None:
        """Forget the accounts that are being watched."""
        for timer in self._refused.values():
            timer.cancel()
        self._refused.clear()

    def _watch(self, event: events.AccountQuarantined) -> None:
        """During a rotation, one account may be refused for a while. It is a problem only if that lasts."""
        what = f"account_refused {event.parity}"
        key = f"{event.name} {what}"
        if key not in self._refused:
            details = {"account": event.parity, "username": event.username, "sqlstate": event.sqlstate}
            after = asyncio.get_running_loop().call_later
            self._refused[key] = after(
                self._max_refused, lambda: self._fire(what, event.name, "warning", lasting=self._max_refused, **details)
            )

    def _works(self, pool: str, parity: aiopqr.Parity) -> None:
        what = f"account_refused {parity}"
        if timer := self._refused.pop(f"{pool} {what}", None):
            timer.cancel()
        self._resolve(what, pool)
        self._resolve("all_refused", pool)

    def _fire(self, what: str, pool: str, severity: str, **details: Any) -> None:
        if f"{pool} {what}" not in self._firing:
            self._firing.add(f"{pool} {what}")
            self._tell(what, pool, severity, **details)

    def _resolve(self, what: str, pool: str) -> None:
        if f"{pool} {what}" in self._firing:
            self._firing.discard(f"{pool} {what}")
            self._tell(what, pool, "resolved")

    def _tell(self, what: str, pool: str, severity: str, **details: Any) -> None:
        alert, _, account = what.partition(" ")
        line = {"alert": alert, "severity": severity, "pool": pool, **({"account": account} if account else {})}
        self._write(json.dumps(line | details) + "\n")


# The rest is a demonstration that triggers the alerts.


async def show(database: RotatingPostgres) -> None:
    alerts = Alerts(sys.stdout.write, max_refused=0.2, max_pair_age=0.2)
    heard = Heard()
    pool = aiopqr.create_pool(
        database.dsn,
        credentials=database.source,
        name="orders",
        listeners=[alerts, heard],
        min_size=1,
        max_size=2,
        max_lifetime=0.3,
        refresh_interval=0.1,
    )
    async with pool:
        print("-- one password is changed, but the store still has the old one")
        await database.rotate("odd", store_delay=None)
        await heard.wait(events.FellBack)
        await asyncio.sleep(0.3)

        print("-- now the store is down as well")
        database.source.error = aiopqr.SourceError("the store is down")
        await heard.wait(events.RefreshFailed)
        await asyncio.sleep(0.3)
        await heard.wait(events.RefreshFailed)

        print("-- the other password is changed too: nobody can log in, but open connections keep working")
        await database.rotate("even", store_delay=None)
        await heard.wait(events.AllRefused)
        await heard.wait(events.ReplacementDelayed)
        assert await pool.fetchval("select 1") == 1

        print("-- the store has both new passwords")
        database.source.error = None
        database.source.pair = database.pair
        await heard.wait(events.Refreshed)
        assert await pool.fetchval("select 1") == 1
    alerts.close()


class Heard:
    """Waits for events."""

    def __init__(self) -> None:
        self._seen: asyncio.Queue[events.Event] = asyncio.Queue()

    def __call__(self, event: events.Event) -> None:
        self._seen.put_nowait(event)

    async def wait(self, kind: type[events.Event]) -> None:
        while not isinstance(await self._seen.get(), kind):
            pass


async def main() -> None:
    async with EmbeddedPostgres() as server:
        await show(await RotatingPostgres.create(server))


if __name__ == "__main__":
    asyncio.run(main())
