"""A stage is given up only when the database certainly has the stored password, whatever logins suggest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from aiopqr.credentials import Credential, Parity
from aiopqr.rotation.errors import RotationFailed, RotationRefused, RotationUndone
from aiopqr.rotation.gates import Gate
from aiopqr.rotation.plan import Action

ODD, EVEN = Parity.ODD, Parity.EVEN


async def caching_proxy(rig: Any) -> Callable[[Credential], Any]:
    """A path that still accepts the passwords that it knows, and uses a server session that is already open."""
    known = (await rig.store.read()).pair

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even):
            raise asyncpg.InvalidPasswordError("password authentication failed")
        con = await rig.admin()
        await con.execute(f'SET SESSION AUTHORIZATION "{credential.username}"')
        return con

    return verify


class Cut:
    """An admin connection that is cut when the answer to COMMIT is due, if ``may_cut`` allows that."""

    def __init__(self, con: Any, may_cut: Callable[[str], bool]) -> None:
        self._con = con
        self._may_cut = may_cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    async def execute(self, sql: str) -> Any:
        result = await self._con.execute(sql)
        if sql.startswith("COMMIT") and self._may_cut(sql):
            self._con.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return result


async def rotate(rotator: Any, **options: Any) -> Any:
    return await rotator.apply(await rotator.plan(**options))


async def test_a_commit_without_an_answer_behind_a_proxy_with_a_cache_is_undone_in_the_database_too(rig: Any) -> None:
    before = (await rig.store.read()).pair

    async def admin() -> Any:
        return Cut(await rig.admin(), lambda sql: sql == "COMMIT")

    with pytest.raises(RotationUndone, match="failed and was undone"):
        await rotate(rig.rotator(admin=admin, verify=await caching_proxy(rig)))
    assert (await rig.store.read()).pair == before
    assert await rig.is_whole()


async def test_a_stage_that_cannot_be_undone_in_the_database_stays_in_the_store(rig: Any) -> None:
    async def admin() -> Any:
        if committed:
            raise ConnectionRefusedError("down")
        return Cut(await rig.admin(), lambda sql: bool(committed.append(sql)) or True)

    committed: list[str] = []
    with pytest.raises(RotationFailed, match="is staged") as caught:
        await rotate(rig.rotator(admin=admin, verify=await caching_proxy(rig)))
    assert not isinstance(caught.value, RotationUndone)
    assert await rig.accepts((await rig.store.read()).pair.pending)
    assert (await rotate(rig.rotator())).action is Action.FINISH


async def test_a_rotator_that_lost_its_lock_to_a_running_one_takes_nothing_back(rig: Any) -> None:
    """The other one may be about to promote the staged password."""
    others: list[Any] = []

    async def admin() -> Any:
        return Cut(await rig.admin(), lambda sql: True)

    class TakenOver(type(rig.store)):  # type: ignore[misc]
        async def stage(self, *args: Any) -> Any:
            staged = await super().stage(*args)
            await rig.postgres.server.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
            )
            context = rig.rotator()._database.exclusively(staged.pair)
            others.append(context)
            await context.__aenter__()
            return staged

    verify = await caching_proxy(rig)
    with pytest.raises(RotationFailed, match="is staged") as caught:
        await rotate(rig.rotator(admin=admin, verify=verify, store=TakenOver(rig.path), announce=0.0))
    await others[0].__aexit__(None, None, None)
    assert not isinstance(caught.value, RotationUndone)
    assert await rig.accepts((await rig.store.read()).pair.pending)


async def test_a_forced_open_stage_is_taken_back_in_the_database_before_the_store_drops_it(rig: Any) -> None:
    verify = await caching_proxy(rig)
    secret = await rig.store.read()
    await rig.store.stage(secret, Credential(rig.name(ODD), "staged"))
    await rig.postgres.server.set_password(rig.name(ODD), "staged")
    known = secret.pair.even

    async def path(credential: Credential) -> Any:  # it has noticed the other account's new password
        if credential in (secret.pair.odd, known):
            return await verify(credential)
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    done = await rotate(rig.rotator(verify=path), account=EVEN, force=[Gate.OPEN_STAGE])
    assert (done.action, done.parity) == (Action.ROTATE, EVEN)
    assert await rig.is_whole()


async def test_an_open_stage_whose_account_cannot_be_altered_is_not_given_up(rig: Any) -> None:
    server, name = rig.postgres.server, f"{rig.postgres.owner}_weak"
    await server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak'")
    staged = await rig.store.stage(await rig.store.read(), Credential(rig.name(ODD), "staged"))

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="weak")

    try:
        with pytest.raises(RotationFailed, match=r"could not be given up.*permission denied"):
            await rotate(rig.rotator(admin=admin), account=EVEN, force=[Gate.OPEN_STAGE])
    finally:
        await server.execute(f"DROP ROLE {name}")
    assert await rig.store.read() == staged


async def test_a_stage_that_an_earlier_run_opened_outlives_a_server_that_refuses_the_change(rig: Any) -> None:
    """That run may have altered the account."""
    server, name = rig.postgres.server, f"{rig.postgres.owner}_weak"
    await server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak'")
    staged = await rig.store.stage(await rig.store.read(), Credential(rig.name(ODD), "staged"))

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="weak")

    try:
        with pytest.raises(RotationUndone, match=r"still staged.*permission denied"):
            await rotate(rig.rotator(admin=admin))
    finally:
        await server.execute(f"DROP ROLE {name}")
    assert await rig.store.read() == staged


async def test_while_a_stage_is_taken_back_nobody_else_can_alter_the_account(rig: Any) -> None:
    database, secret = rig.rotator()._database, await rig.store.read()
    entered: list[bool] = []

    async def other() -> None:
        async with database.altering(secret.pair):
            entered.append(True)

    async with database.altering(secret.pair) as admin:
        waiting = asyncio.create_task(other())
        while not await rig.postgres.server.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        await database.alter(admin, secret.pair.odd)
        await database.commit_and_go_on(admin, secret.pair)
        assert await rig.postgres.server.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1
        assert entered == []
    await waiting


async def test_a_refusal_after_the_announcement_alters_nothing(rig: Any) -> None:
    async def break_other(_: Any) -> None:
        await rig.postgres.server.execute(f"ALTER ROLE {rig.name(ODD)} NOLOGIN")

    tasks: list[asyncio.Task[Any]] = []
    statements: list[str] = []

    class Watched:
        def __init__(self, con: Any) -> None:
            self._con = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self._con, name)

        async def execute(self, sql: str) -> Any:
            statements.append(sql)
            return await self._con.execute(sql)

    async def admin() -> Any:
        return Watched(await rig.admin())

    rotator = rig.rotator(
        admin=admin, announce=0.5, on_announcing=lambda wait: tasks.append(asyncio.create_task(break_other(wait)))
    )
    with pytest.raises(RotationRefused, match="other-refused"):
        await rotate(rotator)
    await asyncio.gather(*tasks)
    assert not [sql for sql in statements if sql.startswith("ALTER ROLE")]
    assert (await rig.store.read()).pair.pending is None
