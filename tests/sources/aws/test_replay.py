"""AWS's own alternating-users rotation, step by step, with pools under load on a real Postgres.

Whenever one published credential is valid, a pool that has been running all along and one that starts at that moment
must both work without an error.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from support.moto import AwsSecret

import aiopqr
from aiopqr.credentials import Credential, Parity
from aiopqr.events import Event, PairDegraded, RefreshFailed
from aiopqr.sources import SecretsManagerSource
from aiopqr.sources.aws.client import SecretsManagerClient
from aiopqr.testing import PostgresServer
from aiopqr.testing.aws import SecretsManager


async def eventually(fact: Callable[[], object], *, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.01)


class Rotation:
    """What AWS's rotation function for alternating users does, step by step."""

    def __init__(self, server: PostgresServer, aws_secret: AwsSecret, owner: str) -> None:
        self.server = server
        self.aws_secret = aws_secret
        self.owner = owner
        self.token = ""

    async def create(self) -> None:
        current = await self.aws_secret.value()
        name = current["username"]
        other = name.removesuffix("_clone") if name.endswith("_clone") else f"{name}_clone"
        self.token = await self.aws_secret.put(
            {**current, "username": other, "password": secrets.token_urlsafe(12)}, "AWSPENDING"
        )

    async def set(self) -> None:
        pending = await self.aws_secret.value("AWSPENDING")
        name, password = pending["username"], pending["password"]
        if not await self.server.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
            await self.server.execute(f'CREATE ROLE "{name}" LOGIN IN ROLE "{self.owner}"')
        await self.server.set_password(name, password)

    async def finish(self) -> None:
        await self.aws_secret.finish(self.token)

    async def whole(self) -> None:
        await self.create()
        await self.set()
        await self.finish()


class Stage:
    """A pool under load, and everything by which a moment is judged."""

    def __init__(self, aws_secret: AwsSecret, rotation: Rotation) -> None:
        self.aws_secret = aws_secret
        self.rotation = rotation
        self.events: list[Event] = []
        self.errors: list[BaseException] = []
        self.pool: Any = None
        self._stopped = False

    def new_pool(self, **options: Any) -> aiopqr.AlternatingPool:
        """Without a DSN, since the secret names the database."""
        source = SecretsManagerSource(self.aws_secret.name, start_spread=0.0, interval=0.2, **self.aws_secret.options)
        defaults = {"min_size": 0, "max_size": 3, "ssl": "disable", "timeout": 10.0}
        return aiopqr.create_pool(credentials=source, **{**defaults, **options})

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        self.pool = self.new_pool(min_size=3, max_lifetime=0.4, listeners=[self.events.append])
        async with self.pool, asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(self._work())
            try:
                yield
            finally:
                self._stopped = True

    async def _work(self) -> None:
        while not self._stopped:
            try:
                await self.pool.fetchval("SELECT 1")
            except Exception as exc:
                self.errors.append(exc)
            await asyncio.sleep(0.005)

    async def holds(self, moment: str, *, readable: bool = True, connects: bool = True) -> None:
        """The pool has fetched and connected again since this moment, a new one starts, and there is no error."""
        before = self.pool.stats()
        if connects:
            await eventually(lambda: opened(self.pool) >= opened(before) + 4)
        if readable:
            await eventually(lambda: self.pool.stats().refresh.ok >= before.refresh.ok + (2 if connects else 1))
            async with self.new_pool() as fresh, AsyncExitStack() as held:
                for _ in range(2):  # each account's turn
                    con = await held.enter_async_context(fresh.acquire())
                    assert await con.fetchval("SELECT 1") == 1
        assert self.errors == [], moment


def opened(pool: Any) -> int:
    stats = pool.stats() if isinstance(pool, aiopqr.AlternatingPool) else pool
    return sum(account.opened for account in stats.accounts.values())


@pytest.fixture
async def stage(server: PostgresServer, service: SecretsManager, client: Any) -> AsyncIterator[Stage]:
    name = f"aws_{secrets.token_hex(4)}"
    base, clone, owner = name, f"{name}_clone", f"{name}_owner"
    pair = await server.create_accounts(base, clone, owner=owner, database=name)
    await server.execute(f'DROP ROLE "{clone}"')  # the first rotation makes it
    assert pair.odd is not None
    secret = {"username": base, "password": pair.odd.password.reveal(), "engine": "postgres"}
    place = {"host": server.host, "port": server.port, "dbname": name}
    aws_secret = AwsSecret(service, client, await service.create_secret({**secret, **place}))
    yield Stage(aws_secret, Rotation(server, aws_secret, owner))
    await server.drop_database(name)
    await server.drop_accounts(base, clone, owner)


async def test_rotations_of_alternating_users_are_never_noticed(stage: Stage) -> None:
    rotation = stage.rotation
    async with stage.load():
        await stage.holds("before the first rotation")
        assert not any(isinstance(event, PairDegraded) for event in stage.events), "one account is what there is"
        for n in ("first", "second", "third"):
            await rotation.create()
            await stage.holds(f"{n}, after createSecret")
            await rotation.set()
            await stage.holds(f"{n}, after setSecret (and testSecret, which changes nothing)")
            await rotation.finish()
            await stage.holds(f"{n}, after finishSecret")
            assert stage.pool.stats().degraded is False
    assert stage.errors == []


async def test_a_stuck_rotation_is_served_even_when_only_its_own_password_is_valid(stage: Stage) -> None:
    rotation = stage.rotation
    await rotation.whole()
    async with stage.load():
        await rotation.create()
        await rotation.set()
        await stage.holds("stuck after setSecret: AWSPREVIOUS is dead, AWSPENDING is alive")
        current = await stage.aws_secret.value()
        await rotation.server.set_password(current["username"], "nobody knows")
        await eventually(lambda: stage.pool.stats().accounts[Parity.EVEN].refused > 0)
        await stage.holds("and AWSCURRENT is dead, too")
        await rotation.finish()
        await stage.holds("finished at last")


async def test_a_value_put_by_hand_before_the_database_has_it_costs_nothing(stage: Stage) -> None:
    rotation, aws_secret = stage.rotation, stage.aws_secret
    await rotation.whole()
    async with stage.load():
        current = await aws_secret.value()
        by_hand = {**current, "password": "by-hand"}
        await aws_secret.put(by_hand)
        await stage.holds("AWSCURRENT is not in force, AWSPREVIOUS is the same account's")
        assert stage.pool.stats().degraded
        await rotation.create()
        await stage.holds("a rotation begins from there")
        await aws_secret.move("AWSPENDING", away=rotation.token)
        await rotation.server.set_password(by_hand["username"], "by-hand")
        # A probe will try the refused password again some time later; until then the open connections stay in use.
        await stage.holds("the database has it now", connects=False)
        await rotation.whole()
        await stage.holds("and a rotation makes the pair whole again", connects=False)
        await eventually(lambda: not stage.pool.stats().degraded)


async def test_a_secret_scheduled_for_deletion_is_told_and_costs_nothing(stage: Stage) -> None:
    await stage.rotation.whole()
    async with stage.load():
        await stage.aws_secret.client.delete_secret(SecretId=stage.aws_secret.name, RecoveryWindowInDays=7)
        await eventually(lambda: any(isinstance(event, RefreshFailed) for event in stage.events))
        failed = next(event for event in stage.events if isinstance(event, RefreshFailed))
        assert "scheduled for deletion" in failed.error
        await stage.holds("deleted", readable=False)
        await stage.aws_secret.client.restore_secret(SecretId=stage.aws_secret.name)
        await eventually(lambda: stage.pool.stats().refresh.failures_in_a_row == 0)
        await stage.holds("restored")


async def test_two_secrets_rotated_one_by_one_are_never_noticed(stage: Stage) -> None:
    """Each by AWS's rotation of a single user, which changes the password before AWSCURRENT moves."""
    server, service = stage.rotation.server, stage.aws_secret.service
    await stage.rotation.whole()
    values = [await stage.aws_secret.value("AWSPREVIOUS"), await stage.aws_secret.value()]
    vaults = [AwsSecret(service, stage.aws_secret.client, await service.create_secret(value)) for value in values]

    def new_pool(**options: Any) -> aiopqr.AlternatingPool:
        names = [aws_secret.name for aws_secret in vaults]
        source = SecretsManagerSource(*names, start_spread=0.0, interval=0.2, **stage.aws_secret.options)
        return aiopqr.create_pool(credentials=source, **{"min_size": 0, "max_size": 3, "ssl": "disable", **options})

    stage.new_pool = new_pool  # type: ignore[method-assign]
    async with stage.load():
        for aws_secret, value in zip(vaults, values, strict=True):
            token = await aws_secret.put({**value, "password": "next"}, "AWSPENDING")
            await stage.holds("createSecret")
            await server.set_password(value["username"], "next")
            await stage.holds("setSecret")
            await aws_secret.finish(token)
            await stage.holds("finishSecret")
    assert Credential(values[0]["username"], "next") in set(stage.pool.connector.pair.credentials())


async def test_many_pools_poll_with_describe_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = SecretsManagerClient.request

    async def request(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
        asked.append(operation)
        return await original(client, operation, secret_id, **more)

    monkeypatch.setattr(SecretsManagerClient, "request", request)
    async with stage.load():
        await eventually(lambda: asked.count("describe_secret") > 5)
    assert asked.count("get_secret_value") == 1
