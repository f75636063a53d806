"""Does a connection that was idle still answer, and does its server still take writes, where it has to?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg

from .._connect import NO_WRITER
from ..clock import clock_of
from .connection import PooledConnection
from .connections import Connections
from .replacement import Replacement
from .writers import WriterWatch

CHECK_TIMEOUT = 5.0
SILENCE = 0.5  # how long a check may be silent before another connection is opened meanwhile


class Checks:
    """Asks the servers of one pool's connections. ``on_read_only`` is called when one takes no writes any more."""

    def __init__(
        self,
        connections: Connections,
        replacement: Replacement,
        loop: asyncio.AbstractEventLoop,
        *,
        on_read_only: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._replacement = replacement
        self._loop = loop
        self._now = clock_of(loop)
        self._name = connections.maker.name
        self._on_read_only = on_read_only

    async def is_alive(self, pooled: PooledConnection) -> bool:
        """Whether a connection answers. One that does not is terminated.

        If a firewall dropped its flow without a word, no answer will ever come. So if it is silent for a while, a spare
        is opened, and when that or any other login succeeds while it is still silent, the connection counts as dead.
        """
        begun = self._now()
        check = self._loop.create_task(self._answers(pooled), name=f"aiopqr-{self._name}-check")
        try:
            await asyncio.wait({check}, timeout=SILENCE)
            if not check.done():
                with self._replacement.spare_wanted():
                    while (
                        not check.done() and self._replacement.spare is None and self._connections.last_opened < begun
                    ):
                        either: set[asyncio.Future[Any]] = {check, self._connections.next_opened()}
                        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not check.done():
                    pooled.con.terminate()
            return await check
        finally:
            if not check.done():
                check.cancel()
                await asyncio.wait({check})

    async def _answers(self, pooled: PooledConnection) -> bool:
        """Ask the server; a connection that does not answer is terminated, and the other idle ones are suspect.

        One whose server takes no writes any more, where it has to, is closed.
        """
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                if pooled.watch is None:
                    await pooled.con.execute("select 1")  # asyncpg fails on an empty query
                    return True
                is_writer = await self._takes_writes(pooled, pooled.watch)
        except Exception as exc:
            pooled.con.terminate()
            self._connections.distrust()
            self._connections.report_lost("idle", exc)
            return False
        except BaseException:
            pooled.con.terminate()
            raise
        if not is_writer:
            self._on_read_only()
        return is_writer

    async def _takes_writes(self, pooled: PooledConnection, watch: WriterWatch) -> bool:
        """Ask the server, and again if the doubt is younger than the question."""
        is_unsure = True
        while is_unsure:
            asked_at = self._now()
            try:
                if await pooled.con.execute(watch.query) == NO_WRITER:
                    self._connections.retire_read_only(pooled, watch, asked_at)
                    return False
            except asyncpg.SyntaxOrAccessError:  # a server that cannot be asked is alive, and left alone from now on
                pooled.watch = None
                return True
            watch.asked_at = asked_at
            is_unsure = watch.is_doubted
        return True

    async def is_alive_at_rest(self, pooled: PooledConnection) -> bool:
        """As :meth:`is_alive`, for a connection that stays idle."""
        pooled.lend()
        if not await self.is_alive(pooled):
            return False
        pooled.rest(pooled.is_busy())
        return not pooled.con.is_closed()
