"""Checks whether an idle connection still answers and, if required, whether its server still accepts writes."""

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
SILENCE = 0.5  # if a check gets no answer for this long, another connection is opened in the meantime


class Checks:
    """Checks the connections of one pool. ``on_read_only`` is called if a server no longer accepts writes."""

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
        """Whether a connection answers. If it does not, it is terminated.

        If a firewall has silently dropped the connection, no answer will ever come. So if there is no answer for a
        while, a spare is opened. If that or any other login succeeds before the answer, the connection counts as dead.
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
        """Query the server. If there is no answer, terminate the connection, and distrust the other idle ones.

        If the server has to accept writes and no longer does, close the connection.
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
        """Ask the server whether it accepts writes. Ask again if a new doubt arose after the question was sent."""
        is_unsure = True
        while is_unsure:
            asked_at = self._now()
            try:
                if await pooled.con.execute(watch.query) == NO_WRITER:
                    self._connections.retire_read_only(pooled, watch, asked_at)
                    return False
            except asyncpg.SyntaxOrAccessError:  # it is alive but does not understand the question, so never ask again
                pooled.watch = None
                return True
            watch.asked_at = asked_at
            is_unsure = watch.is_doubted
        return True

    async def is_alive_at_rest(self, pooled: PooledConnection) -> bool:
        """Like :meth:`is_alive`, for a connection that stays idle."""
        pooled.lend()
        if not await self.is_alive(pooled):
            return False
        pooled.rest(pooled.is_busy())
        return not pooled.con.is_closed()
