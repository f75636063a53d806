"""Rotations on a real server: what changes, what is refused, what is undone, and what the server's log holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from aiopqr.credentials import Credential, CredentialPair, Parity, Secret
from aiopqr.errors import ConfigurationError, RotationError
from aiopqr.rotation.errors import (
    PathDown,
    RotationFailed,
    RotationRefused,
    RotationUndone,
    StoreConflict,
    StoreError,
    StoreNotWritable,
)
from aiopqr.rotation.gates import Gate, Rules
from aiopqr.rotation.passwords import PasswordRule
from aiopqr.rotation.plan import Action
from aiopqr.rotation.run import Step
from aiopqr.rotation.stores.file import FileStore
from aiopqr.rotation.stores.store import StoredSecret

ODD, EVEN = Parity.ODD, Parity.EVEN
NO_SPACING = Rules(max_lifetime=0.0, refresh_interval=0.0, margin=0.0)


async def rotate(rotator: Any, **options: Any) -> Any:
    return await rotator.apply(await rotator.plan(**options))


async def test_a_rotation_changes_one_account_in_database_and_store(rig: Any) -> None:
    before = (await rig.store.read()).pair
    steps: list[Step] = []
    done = await rotate(rig.rotator(listener=steps.append))
    after = await rig.store.read()
    assert (done.action, done.parity, done.username) == (Action.ROTATE, EVEN, rig.name(EVEN))
    assert after.pair.odd == before.odd
    assert after.pair.even != before.even
    assert not await rig.accepts(before.even)
    assert await rig.is_whole()
    assert steps == [Step.CHECKED, Step.STAGED, Step.ALTERED, Step.VERIFIED, Step.PROMOTED]


async def test_the_change_is_dated_by_the_servers_clock_and_the_account_becomes_active(rig: Any) -> None:
    start = await rig.postgres.server.fetchval("SELECT clock_timestamp()")
    done = await rotate(rig.rotator())
    end = await rig.postgres.server.fetchval("SELECT clock_timestamp()")
    stored = await rig.store.read()
    assert start < done.changed_at < end
    assert stored.even_changed_at == done.changed_at
    assert stored.pair.active is EVEN


async def test_rotations_alternate(rig: Any) -> None:
    rotator = rig.rotator(rules=NO_SPACING)
    assert [(await rotate(rotator)).parity for _ in range(4)] == [EVEN, ODD, EVEN, ODD]
    assert await rig.is_whole()


async def test_a_plan_changes_nothing(rig: Any) -> None:
    before = rig.path.read_bytes()
    plan = await rig.rotator().plan()
    assert plan.refusals == ()
    assert rig.path.read_bytes() == before
    assert await rig.is_whole()


async def test_the_second_rotation_is_refused_until_pools_have_recycled(rig: Any) -> None:
    await rotate(rig.rotator())
    before = rig.path.read_bytes()
    with pytest.raises(RotationRefused, match="too-soon"):
        await rotate(rig.rotator())
    assert rig.path.read_bytes() == before


async def test_sessions_from_before_the_other_accounts_change_are_refused(rig: Any) -> None:
    con = await rig.postgres.connect(EVEN)  # a pool that never recycles
    try:
        rotator = rig.rotator(rules=NO_SPACING)
        await rotate(rotator)
        with pytest.raises(RotationRefused, match=r"1 session of '.*_even' is from before its last change") as caught:
            await rotate(rotator)
        assert [objection.gate for objection in caught.value.objections] == [Gate.OLD_SESSIONS]
        assert (await rotate(rotator, force=[Gate.OLD_SESSIONS])).parity is ODD
    finally:
        await con.close()


async def test_an_admin_role_that_sees_no_sessions_start_is_refused(rig: Any) -> None:
    server, name = rig.postgres.server, f"{rig.postgres.owner}_admin"
    await server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'admin'")
    con = await rig.postgres.connect(ODD)

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="admin")

    try:
        [objection] = (await rig.rotator(admin=admin).plan()).objections
        assert objection.gate is Gate.UNSEEN_SESSIONS
        await server.execute(f"GRANT pg_read_all_stats TO {name}")
        assert (await rig.rotator(admin=admin).plan()).objections == ()
    finally:
        await con.close()
        await server.execute(f"DROP ROLE {name}")


async def test_the_other_account_must_log_in(rig: Any) -> None:
    await rig.postgres.server.execute(f"ALTER ROLE {rig.name(ODD)} NOLOGIN")
    with pytest.raises(RotationRefused, match=r"other-refused.*not permitted to log in"):
        await rotate(rig.rotator())
    assert await rig.accepts((await rig.store.read()).pair.even)


async def test_a_store_that_is_not_the_databases_is_refused_and_force_repairs_it(rig: Any) -> None:
    await rig.postgres.server.set_password(rig.name(EVEN), "changed by hand")
    rotator = rig.rotator()
    with pytest.raises(RotationRefused, match="mismatch"):
        await rotate(rotator)
    await rotate(rotator, force=[Gate.MISMATCH])
    assert await rig.is_whole()


async def test_of_two_rotators_at_once_the_second_is_refused(rig: Any) -> None:
    reached, release = asyncio.Event(), asyncio.Event()

    class Slow(FileStore):
        async def promote(self, *args: Any, **kwargs: Any) -> StoredSecret:
            reached.set()
            await release.wait()
            return await super().promote(*args, **kwargs)

    first = asyncio.create_task(rotate(rig.rotator(store=Slow(rig.path))))
    await reached.wait()
    second = rig.rotator()
    plan = await second.plan()
    with pytest.raises(RotationRefused, match="in-progress"):
        await second.apply(plan)
    release.set()
    assert (await first).action is Action.ROTATE
    assert await rig.is_whole()


async def test_of_many_rotators_at_once_exactly_one_rotates(rig: Any) -> None:
    results = await asyncio.gather(*(rotate(rig.rotator()) for _ in range(4)), return_exceptions=True)
    done = [result for result in results if not isinstance(result, BaseException)]
    assert len(done) == 1
    assert all(isinstance(result, RotationRefused) for result in results if result not in done)
    assert await rig.is_whole()


async def test_a_plan_overtaken_by_another_rotation_is_refused(rig: Any) -> None:
    rotator = rig.rotator(rules=NO_SPACING)
    plan = await rotator.plan()
    await rotate(rig.rotator(rules=NO_SPACING))
    with pytest.raises(RotationRefused, match="the situation has changed"):
        await rotator.apply(plan)
    assert await rig.is_whole()


async def test_a_rotator_that_lost_its_lock_and_slept_through_later_rotations_alters_nothing(rig: Any) -> None:
    taken = []

    class Sleepy(FileStore):
        async def stage(self, *args: Any) -> StoredSecret:
            staged = await super().stage(*args)
            await rig.postgres.server.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
            )
            # Others take over, finish this one, and continue until the same account has had its next password.
            for _ in range(3):
                done = await rotate(rig.rotator(rules=NO_SPACING))
                taken.append((done.action, done.parity))
            return staged

    with pytest.raises(RotationError):
        await rotate(rig.rotator(store=Sleepy(rig.path)))
    assert taken == [(Action.RESUME, EVEN), (Action.ROTATE, ODD), (Action.ROTATE, EVEN)]
    assert await rig.is_whole()


async def test_a_server_that_refuses_the_change_leaves_all_as_it_was(rig: Any) -> None:
    server, name = rig.postgres.server, f"{rig.postgres.owner}_weak"
    await server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak'")
    before = await rig.store.read()

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="weak")

    try:
        with pytest.raises(RotationUndone, match="permission denied"):
            await rotate(rig.rotator(admin=admin))
    finally:
        await server.execute(f"DROP ROLE {name}")
    after = await rig.store.read()
    assert (after.pair, after.even_changed_at) == (before.pair, before.even_changed_at)
    assert await rig.is_whole()


async def test_an_admin_role_needs_no_more_than_the_readme_says(rig: Any) -> None:
    server, name = rig.postgres.server, f"{rig.postgres.owner}_admin"
    await server.execute(
        f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'admin' IN ROLE pg_read_all_stats, pg_signal_backend"
    )
    if await server.fetchval("SELECT current_setting('server_version_num')::int") >= 160000:
        await server.execute(
            f"GRANT {rig.name(ODD)}, {rig.name(EVEN)} TO {name} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
        )
    con = await rig.postgres.connect(EVEN)

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="admin")

    try:
        done = await rotate(rig.rotator(admin=admin, end_sessions_after=0.0))
        assert (done.action, done.ended, done.warning) == (Action.ROTATE, 1, None)
    finally:
        await con.close()
        await server.execute(f"DROP ROLE {name}")
    assert await rig.is_whole()


async def test_a_new_password_that_the_applications_path_refuses_is_taken_back(rig: Any) -> None:
    """Like a proxy with a static list of users, which knows only the old passwords."""
    known = (await rig.store.read()).pair

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even):
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    with pytest.raises(RotationUndone, match="path refuses its new password"):
        await rotate(rig.rotator(verify=verify))
    assert (await rig.store.read()).pair == known
    assert await rig.is_whole()


async def test_an_applications_path_that_needs_a_moment_is_waited_for(rig: Any) -> None:
    known, refused = (await rig.store.read()).pair, []

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even) and len(refused) < 2:
            refused.append(1)
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    assert (await rotate(rig.rotator(verify=verify))).action is Action.ROTATE
    assert len(refused) == 2


async def test_while_the_applications_path_is_down_the_stage_stays_open_and_the_next_run_finishes(rig: Any) -> None:
    known = (await rig.store.read()).pair

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even):
            raise ConnectionRefusedError(111, "Connection refused")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    with pytest.raises(RotationFailed, match=r"is unknown.*Connection refused") as caught:
        await rotate(rig.rotator(verify=verify, verify_timeout=0.5))
    assert not isinstance(caught.value, RotationUndone)
    assert await rig.accepts((await rig.store.read()).pair.pending)
    assert (await rotate(rig.rotator())).action is Action.FINISH
    assert await rig.is_whole()


async def test_a_store_that_fails_to_promote_is_tried_again(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr.rotation.run._PROMOTE_PAUSES", (0.0, 0.0))
    failures = iter([StoreError("throttled"), StoreError("throttled")])

    class Flaky(FileStore):
        async def promote(self, *args: Any, **kwargs: Any) -> StoredSecret:
            for failure in failures:
                raise failure
            return await super().promote(*args, **kwargs)

    await rotate(rig.rotator(store=Flaky(rig.path)))
    assert await rig.is_whole()


async def test_a_store_that_cannot_be_written_is_found_by_the_plan(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_only(self: FileStore) -> None:
        raise StoreError("a mounted Secret is read-only")

    monkeypatch.setattr(FileStore, "check_writable", read_only)
    with pytest.raises(StoreError, match="read-only"):
        await rig.rotator().plan()


@pytest.mark.parametrize("taken", [False, True])
async def test_a_store_that_does_not_take_a_new_password_is_told_from_one_that_may_have(
    rig: Any, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    real, before = FileStore.stage, await rig.store.read()

    async def failing(self: FileStore, *args: Any) -> Any:
        if taken:
            await real(self, *args)
        raise StoreError("access denied")

    monkeypatch.setattr(FileStore, "stage", failing)
    rotator = rig.rotator()
    with pytest.raises(RotationFailed if taken else StoreNotWritable, match="access denied"):
        await rotator.apply(await rotator.plan())
    assert (await rig.store.read() == before) is not taken
    assert await rig.accepts(before.pair.even)


async def test_a_promotion_whose_answer_was_lost_counts_as_done(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr.rotation.run._PROMOTE_PAUSES", (0.0,))

    class Silent(FileStore):
        async def promote(self, *args: Any, **kwargs: Any) -> StoredSecret:
            await super().promote(*args, **kwargs)
            raise StoreError("no answer")

    assert (await rotate(rig.rotator(store=Silent(rig.path)))).action is Action.ROTATE
    assert await rig.is_whole()


async def test_a_file_edited_by_hand_while_rotating_keeps_both_changes(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiopqr.rotation.run._PROMOTE_PAUSES", (0.0,))

    def edit(step: Step) -> None:
        if step is Step.ALTERED:
            rig.path.write_text(json.dumps(json.loads(rig.path.read_text()) | {"note": "by hand"}))

    await rotate(rig.rotator(listener=edit))
    assert (await rig.store.read()).other == {"note": "by hand"}
    assert await rig.is_whole()


async def test_a_store_that_stays_down_leaves_it_to_the_next_run(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr.rotation.run._PROMOTE_PAUSES", (0.0,))

    class Down(FileStore):
        async def promote(self, *args: Any, **kwargs: Any) -> StoredSecret:
            raise StoreError("no route")

    with pytest.raises(RotationFailed, match="did not accept it: no route"):
        await rotate(rig.rotator(store=Down(rig.path)))
    assert (await rotate(rig.rotator())).action is Action.FINISH
    assert await rig.is_whole()


async def test_old_sessions_are_ended_after_the_grace_period_and_only_those(rig: Any) -> None:
    old, spared, other = (
        await rig.postgres.connect(EVEN),
        await rig.postgres.connect(EVEN),
        await rig.postgres.connect(ODD),
    )
    try:
        await spared.execute("SET application_name = 'replicator'")
        rules = Rules(
            max_lifetime=60.0, refresh_interval=1.0, margin=1.0, exempt_applications=frozenset({"replicator"})
        )
        done = await rotate(rig.rotator(rules=rules, end_sessions_after=0.0))
        assert (done.ended, done.warning) == (1, None)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await old.fetchval("SELECT 1")
        assert await spared.fetchval("SELECT 1") == await other.fetchval("SELECT 1") == 1
    finally:
        for con in (old, spared, other):
            await con.close()


async def test_a_degraded_pair_is_told_as_such(rig: Any) -> None:
    document = json.loads(rig.path.read_text())
    rig.path.write_text(json.dumps({k: v for k, v in document.items() if not k.startswith("odd")}))
    with pytest.raises(RotationError, match="it has no odd account"):
        await rig.rotator().plan()


@pytest.mark.parametrize("name", ["o'dd", 'o"dd', "O dd", "ödd", "odd\\", "select"])
async def test_any_role_name_can_be_rotated(rig: Any, name: str) -> None:
    server = rig.postgres.server
    name = f"{name}-{rig.postgres.owner}"
    quoted = '"' + name.replace('"', '""') + '"'
    await server.execute(f"CREATE ROLE {quoted} LOGIN")
    try:
        await server.set_password(name, "first")
        pair = CredentialPair(rig.postgres.pair.odd, Credential(name, "first"))
        await rig.start(pair, age=3600.0)
        assert (await rotate(rig.rotator(), account=EVEN)).username == name
        assert await rig.is_whole()
    finally:
        await server.execute(f"DROP ROLE {quoted}")


async def test_with_every_statement_logged_the_servers_log_holds_no_password(rig: Any) -> None:
    server = rig.postgres.server
    mark = server.mark()
    await server.configure(log_statement="all", log_min_duration_statement=0, log_connections=True)
    passwords: list[Secret] = []
    try:
        rotator = rig.rotator(rules=NO_SPACING)
        for _ in range(3):
            await rotate(rotator)
            passwords += [account.password for account in (await rig.store.read()).pair.credentials()]
        await server.set_password(rig.name(EVEN), "changed by hand")
        await rotate(rotator, account=EVEN, force=[Gate.MISMATCH])
    finally:
        await server.configure(log_statement=None, log_min_duration_statement=None, log_connections=None)
    log = server.log_text(mark)
    assert log.count("ALTER ROLE") >= 4
    assert not [password for password in passwords if password.reveal() in log]


async def test_a_failure_shows_no_password_and_no_verifier_in_text_or_frames(rig: Any) -> None:
    """A driver's error holds the statement, and its frames hold the password."""
    seen: list[str] = []

    class Watched(FileStore):
        async def stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
            seen.append(credential.password.reveal())
            return await super().stage(secret, credential)

    class Refusing:
        def __init__(self, con: Any) -> None:
            self._con = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self._con, name)

        async def execute(self, sql: str, *args: Any) -> Any:
            if sql.startswith("ALTER ROLE"):
                seen.append(sql.split("'")[1])
                sql = sql.replace("ALTER ROLE", "ALTER ROLE no_such_role_at_all; ALTER ROLE")
            return await self._con.execute(sql, *args)

    async def admin() -> Any:
        return Refusing(await rig.admin())

    with pytest.raises(RotationUndone) as caught:
        await rotate(rig.rotator(admin=admin, store=Watched(rig.path)))
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # this test's own frame has them, of course
    printed = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert len(seen) == 2
    assert "ALTER ROLE" in printed
    assert not [secret for secret in seen if secret in printed]


@pytest.mark.parametrize("step", [Step.CHECKED, Step.STAGED, Step.ALTERED, Step.VERIFIED, Step.PROMOTED])
async def test_cancelled_after_any_step_it_holds_no_lock_and_the_next_run_makes_the_pair_whole(
    rig: Any, step: Step
) -> None:
    def cancel(done: Step) -> None:
        if done is step:
            rotation.cancel()

    rotation = asyncio.create_task(rotate(rig.rotator(listener=cancel, end_sessions_after=0.0)))
    with pytest.raises(asyncio.CancelledError):
        await rotation
    assert await rig.postgres.server.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []
    with contextlib.suppress(RotationRefused):  # once promoted, it is too soon for another one
        await rotate(rig.rotator())
    assert await rig.is_whole()


async def test_an_account_at_its_connection_limit_is_not_taken_for_a_refused_password(rig: Any) -> None:
    """Postgres counts connections after it has accepted the password."""

    def fill(step: Step) -> None:
        if step is Step.STAGED:
            full.append(True)

    async def verify(credential: Credential) -> Any:
        if full:
            await rig.postgres.server.execute(f"ALTER ROLE {rig.name(EVEN)} CONNECTION LIMIT 0")
            full.clear()
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    full: list[bool] = []
    with pytest.raises(RotationFailed, match=r"is unknown.*too many connections for role") as caught:
        await rotate(rig.rotator(verify=verify, listener=fill, verify_timeout=0.5))
    assert not isinstance(caught.value, RotationUndone)
    await rig.postgres.server.execute(f"ALTER ROLE {rig.name(EVEN)} CONNECTION LIMIT -1")
    assert (await rotate(rig.rotator())).action is Action.FINISH
    assert await rig.is_whole()


async def test_an_undoing_that_fails_is_told_and_the_next_run_makes_the_pair_whole(rig: Any) -> None:
    known = (await rig.store.read()).pair

    class Down(FileStore):
        async def abandon(self, secret: StoredSecret) -> StoredSecret:
            raise StoreError("no route")

    async def verify(credential: Credential) -> Any:
        if credential not in (known.odd, known.even):
            raise asyncpg.InvalidPasswordError("password authentication failed")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    with pytest.raises(RotationFailed, match=r"Undoing it also failed: no route"):
        await rotate(rig.rotator(verify=verify, store=Down(rig.path)))
    assert await rig.accepts(known.even)
    assert (await rotate(rig.rotator())).action is Action.RESUME
    assert await rig.is_whole()


@pytest.mark.parametrize(
    "rules",
    [{"max_lifetime": -1.0}, {"margin": float("nan")}, {"assume_changed_before": datetime(2025, 1, 1)}],  # noqa: DTZ001
)
def test_rules_that_cannot_be_are_told_by_their_name(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(rules))):
        Rules(**rules)


@pytest.mark.parametrize("option", [{"end_sessions_after": -1.0}, {"verify_timeout": 0.0}, {"connect_timeout": 0.0}])
async def test_an_option_that_cannot_work_is_told_by_its_name(rig: Any, option: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        rig.rotator(**option)


async def test_the_passwords_follow_the_users_rule(rig: Any) -> None:
    await rotate(rig.rotator(passwords=PasswordRule(length=60, alphabet="0123456789")))
    password = (await rig.store.read()).pair.even.password.reveal()
    assert len(password) == 60
    assert password.isdigit()


async def test_change_times_that_are_not_known_are_taken_on_the_operators_word(rig: Any) -> None:
    document = json.loads(rig.path.read_text())
    rig.path.write_text(json.dumps({k: v for k, v in document.items() if not k.endswith("_changed_at")}))
    with pytest.raises(RotationRefused, match="does not know when"):
        await rotate(rig.rotator())
    rules = Rules(60.0, 1.0, 1.0, assume_changed_before=datetime.now(UTC) - timedelta(hours=1))
    await rotate(rig.rotator(rules=rules))
    assert await rig.is_whole()


async def test_a_database_that_is_down_is_told_without_a_change(rig: Any) -> None:
    before = rig.path.read_bytes()
    with pytest.raises(RotationError, match="admin role cannot connect"):
        await rig.rotator(admin="postgresql://nobody@127.0.0.1:1/postgres").plan()
    assert rig.path.read_bytes() == before


async def test_a_conflict_is_a_store_error_and_a_rotation_error() -> None:
    assert issubclass(StoreConflict, StoreError)
    assert issubclass(StoreError, RotationError)


async def test_a_path_that_goes_down_after_the_plan_is_told_apart_and_changes_nothing(rig: Any) -> None:
    before, is_down = rig.path.read_bytes(), False

    async def verify(credential: Credential) -> Any:
        if is_down:
            raise ConnectionRefusedError("down")
        return await asyncpg.connect(rig.postgres.dsn, user=credential.username, password=credential.password.reveal)

    rotator = rig.rotator(verify=verify)
    plan = await rotator.plan(force=list(Gate))
    is_down = True
    with pytest.raises(PathDown, match="path is down"):
        await rotator.apply(plan)
    assert rig.path.read_bytes() == before
    assert await rig.is_whole()


async def test_a_stage_in_force_is_finished_though_the_other_account_cannot_be_tried(rig: Any) -> None:
    secret = await rig.store.read()
    await rig.store.stage(secret, Credential(rig.name(ODD), "staged"))
    await rig.postgres.server.set_password(rig.name(ODD), "staged")
    await rig.postgres.server.execute(f"ALTER ROLE {rig.name(EVEN)} CONNECTION LIMIT 0")
    assert (await rotate(rig.rotator())).action is Action.FINISH


async def test_old_sessions_that_the_admin_role_cannot_see_are_reported_as_not_ended(rig: Any) -> None:
    server, name = rig.postgres.server, f"{rig.postgres.owner}_clerk"
    await server.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'clerk'")
    if await server.fetchval("SELECT current_setting('server_version_num')::int >= 160000"):
        await server.execute(
            f"GRANT {rig.name(ODD)}, {rig.name(EVEN)} TO {name} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
        )
    con = await rig.postgres.connect(EVEN)

    async def admin() -> Any:
        return await asyncpg.connect(server.dsn, user=name, password="clerk")

    try:
        done = await rotate(rig.rotator(admin=admin, end_sessions_after=0.0))
        assert done.ended == 0
        assert "grant it pg_read_all_stats" in done.warning
        assert await con.fetchval("SELECT 1") == 1
    finally:
        await con.close()
        await server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_an_admin_session_lost_before_old_sessions_are_ended_is_a_warning(rig: Any) -> None:
    promoted: list[Step] = []

    async def admin() -> Any:
        con = await rig.admin()
        if Step.PROMOTED in promoted:
            await rig.postgres.server.execute(f"SELECT pg_terminate_backend({con.get_server_pid()}, 5000)")
        return con

    done = await rotate(rig.rotator(admin=admin, end_sessions_after=0.0, listener=promoted.append))
    assert (done.action, done.ended) == (Action.ROTATE, 0)
    assert "could not be ended" in done.warning
    assert await rig.is_whole()
