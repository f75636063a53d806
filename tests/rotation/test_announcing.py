"""Between staging a password and changing it, the rotator gives pools the time to step aside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from aiopqr._refresh.announcement import STEP_ASIDE_MAX
from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.errors import ConfigurationError
from aiopqr.rotation import Announcing, RotationRefused, RotationUndone, Rules, Step
from aiopqr.rotation.announcing import ANNOUNCE_MAX, announced_longer
from aiopqr.rotation.plan import Action
from aiopqr.rotation.rotator import Rotator
from aiopqr.rotation.stores.store import StoredSecret

EVEN = Parity.EVEN


async def rotate(rotator: Any) -> Any:
    return await rotator.apply(await rotator.plan())


async def test_the_database_is_changed_only_after_the_announcement(rig: Any) -> None:
    waits: list[Announcing] = []
    times: dict[Step, float] = {}

    def note(step: Step) -> None:
        times[step] = time.monotonic()

    rotator = rig.rotator(announce=0.5, on_announcing=waits.append, listener=note)
    await rotate(rotator)
    assert times[Step.ALTERED] - times[Step.STAGED] >= 0.5
    assert list(times) == [Step.CHECKED, Step.STAGED, Step.ANNOUNCED, Step.ALTERED, Step.VERIFIED, Step.PROMOTED]
    [wait] = waits
    assert (0.3 < wait.seconds <= 0.5, wait.unaware) == (True, ())
    assert await rig.is_whole()


def test_without_being_told_it_announces_for_the_pools_refresh_interval_and_ten_seconds(rig: Any) -> None:
    assert Rotator(admin=rig.admin, store=rig.store, verify=rig.postgres.dsn).announce == 70.0
    nobody_polls = Rules(refresh_interval=0.0)
    assert Rotator(admin=rig.admin, store=rig.store, verify=rig.postgres.dsn, rules=nobody_polls).announce == 0.0


def test_it_announces_for_no_longer_than_leaves_time_for_the_change_while_pools_step_aside(rig: Any) -> None:
    with pytest.raises(ConfigurationError, match="at most 840 s"):
        rig.rotator(announce=841.0)
    assert rig.rotator(announce=None, rules=Rules(refresh_interval=3600.0)).announce == 840.0


async def test_an_interrupted_announcement_is_resumed_for_what_is_left(rig: Any) -> None:
    def interrupt(announcing: Announcing) -> None:
        asyncio.get_running_loop().call_soon(first.cancel)

    first = asyncio.create_task(rotate(rig.rotator(announce=600.0, on_announcing=interrupt)))
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await rig.store.read()).pair.pending is not None
    assert await rig.accepts(rig.postgres.pair.even)

    document = json.loads(rig.path.read_text())
    staged_at = datetime.now(UTC) - timedelta(seconds=597.0)
    rig.path.write_text(json.dumps({**document, "pending_staged_at": staged_at.isoformat()}))
    waits: list[Announcing] = []
    done = await rotate(rig.rotator(announce=600.0, on_announcing=waits.append))
    assert done.action is Action.RESUME
    assert [wait.seconds <= 3.0 for wait in waits] == [True]
    assert await rig.is_whole()


async def test_a_stage_that_is_older_than_the_announcement_is_not_waited_for(rig: Any) -> None:
    staged = await rig.store.stage(await rig.store.read(), Credential(rig.name(EVEN), "staged"))
    assert staged.staged_at
    waits: list[Announcing] = []
    await asyncio.sleep(0.05)
    await rotate(rig.rotator(announce=0.05, on_announcing=waits.append))
    assert waits == []


async def test_a_pool_that_has_not_heard_is_named_and_waited_for_once(rig: Any) -> None:
    waits: list[Announcing] = []
    late: list[Any] = []

    async def open_late() -> None:
        await asyncio.sleep(0.7)
        account = rig.postgres.pair.even
        settings = {"application_name": "deaf"}
        late.append(
            await asyncpg.connect(
                rig.postgres.dsn, user=account.username, password=account.password.reveal, server_settings=settings
            )
        )

    tasks: list[asyncio.Task[None]] = []

    def announcing(wait: Announcing) -> None:
        waits.append(wait)
        if not tasks:
            tasks.append(asyncio.create_task(open_late()))

    await rotate(rig.rotator(announce=1.0, on_announcing=announcing))
    here = await late[0].fetchval("select host(inet_client_addr())")  # not 127.0.0.1 if Docker's proxy is in between
    await late[0].close()
    first, second = waits
    assert first.unaware == ()
    assert second.unaware == ((f"deaf, {here}", 1),)
    assert f"1 session of deaf, {here}" in str(second)
    assert await rig.is_whole()


async def test_an_account_that_breaks_while_announcing_stops_the_rotation_and_closes_the_stage(rig: Any) -> None:
    before = (await rig.store.read()).pair

    def lock_out(announcing: Announcing) -> None:
        tasks.append(asyncio.create_task(rig.postgres.server.execute(f"ALTER ROLE {rig.name(Parity.ODD)} NOLOGIN")))

    tasks: list[asyncio.Task[Any]] = []
    with pytest.raises(RotationRefused, match="other-refused"):
        await rotate(rig.rotator(announce=1.0, on_announcing=lock_out))
    await tasks[0]
    assert (await rig.store.read()).pair == before
    assert await rig.accepts(before.even)


@pytest.mark.parametrize("step", [Step.CHECKED, Step.STAGED, Step.ANNOUNCED, Step.ALTERED, Step.VERIFIED])
async def test_with_the_admins_sessions_killed_after_any_step_the_rotation_is_finished_all_the_same(
    rig: Any, step: Step
) -> None:
    kill = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'rotating-admin'"
    killing: list[asyncio.Task[Any]] = []

    async def admin() -> Any:
        con = await rig.admin()
        await con.execute("SET application_name = 'rotating-admin'")
        return con

    class Waiting(type(rig.store)):  # type: ignore[misc]
        """A listener cannot wait, so the store's next call waits until the kill has happened."""

        async def read(self) -> StoredSecret:
            await asyncio.gather(*killing)
            return await super().read()

        async def promote(self, *args: Any, **kwargs: Any) -> StoredSecret:
            await asyncio.gather(*killing)
            return await super().promote(*args, **kwargs)

    def strike(done: Step) -> None:
        if done is step:
            killing.append(asyncio.create_task(rig.postgres.server.execute(kill)))

    rotator = rig.rotator(admin=admin, store=Waiting(rig.path), listener=strike, announce=0.3)
    done = await rotate(rotator)
    assert (done.action, len(killing)) == (Action.ROTATE, 1)
    assert await rig.is_whole()


async def test_an_alteration_that_was_lost_on_its_way_is_undone_and_reported_as_such(rig: Any) -> None:
    class Lost:
        """A connection that is cut while ALTER ROLE is under way."""

        def __init__(self, con: Any) -> None:
            self._con = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self._con, name)

        async def execute(self, sql: str) -> Any:
            if sql.startswith("ALTER ROLE"):
                pid = self._con.get_server_pid()
                await rig.postgres.server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            return await self._con.execute(sql)

    async def admin() -> Any:
        return Lost(await rig.admin())

    before = (await rig.store.read()).pair
    with pytest.raises(RotationUndone, match="failed and was undone"):
        await rotate(rig.rotator(admin=admin))
    assert (await rig.store.read()).pair == before
    assert await rig.is_whole()


async def test_an_alteration_whose_answer_was_lost_is_found_to_be_in_force_and_promoted(rig: Any) -> None:
    class Silent:
        """A connection that is cut between COMMIT and its answer."""

        def __init__(self, con: Any) -> None:
            self._con = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self._con, name)

        async def execute(self, sql: str) -> Any:
            result = await self._con.execute(sql)
            if sql == "COMMIT":
                self._con.terminate()
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            return result

    async def admin() -> Any:
        return Silent(await rig.admin())

    assert (await rotate(rig.rotator(admin=admin))).action is Action.ROTATE
    assert await rig.is_whole()


async def test_valid_until_is_renewed_and_an_expired_account_logs_in_again(rig: Any) -> None:
    server, name = rig.postgres.server, rig.name(EVEN)
    await server.execute(f"ALTER ROLE {name} VALID UNTIL '2020-01-01'")
    assert not await rig.accepts((await rig.store.read()).pair.even)
    plan = await rig.rotator().plan()
    assert (plan.parity, plan.objections) == (EVEN, ())
    await rotate(rig.rotator())
    end = await server.fetchval("SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", name)
    assert timedelta(days=89) < end - datetime.now(UTC) < timedelta(days=91)
    assert await rig.is_whole()


async def test_undoing_gives_the_account_its_valid_until_back(rig: Any) -> None:
    known, server, name = (await rig.store.read()).pair, rig.postgres.server, rig.name(EVEN)
    end = datetime(2099, 1, 1, tzinfo=UTC)
    await server.execute(f"ALTER ROLE {name} VALID UNTIL '2099-01-01 00:00:00+00'")

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even):
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    with contextlib.suppress(Exception):
        await rotate(rig.rotator(verify=verify))
    assert await server.fetchval("SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", name) == end
    assert await rig.is_whole()


def test_a_second_wait_ends_while_pools_still_step_aside() -> None:
    staged = StoredSecret(CredentialPair.single(Credential("a", "b")), "1", staged_at=datetime.now(UTC))
    assert announced_longer(staged, ANNOUNCE_MAX) < STEP_ASIDE_MAX
