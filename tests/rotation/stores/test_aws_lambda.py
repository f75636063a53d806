"""The rotation function, called as the service calls it: four steps, each repeated, each crashed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from support.moto import AwsSecret

from aiopqr.credentials import Credential, CredentialPair
from aiopqr.errors import ConfigurationError, RotationError
from aiopqr.rotation.aws_lambda import handler
from aiopqr.rotation.database import Database
from aiopqr.rotation.errors import RotationRefused
from aiopqr.rotation.rotator import Rotator
from aiopqr.rotation.stores.aws import SecretsManagerStore
from aiopqr.rotation.stores.document import new_document
from aiopqr.sources import SecretsManagerSource
from aiopqr.sources.aws.client import SecretsManagerClient
from aiopqr.testing import RotatingPostgres
from aiopqr.testing.aws import REGION

STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")


@dataclass
class Rig:
    """A pair on a real server, its secret, and the function's environment."""

    postgres: RotatingPostgres
    aws_secret: AwsSecret
    source: Any = None

    async def start(self, *, age: float = 86400.0, **more: object) -> None:
        """A new secret, with passwords that are this many seconds old."""
        document = new_document(self.postgres.pair, datetime.now(UTC) - timedelta(seconds=age))
        self.aws_secret.name = await self.aws_secret.service.create_secret({**document, **more})
        await self.close()
        self.source = SecretsManagerSource(self.aws_secret.name, start_spread=0.0, **self.aws_secret.options)

    async def close(self) -> None:
        if self.source is not None:
            await self.source.aclose()

    async def call(self, step: str, token: str) -> None:
        """What the service does, in a thread, since the function has its own event loop."""
        event = {"SecretId": self.aws_secret.name, "ClientRequestToken": token, "Step": step}
        await asyncio.to_thread(handler, json.loads(json.dumps(event)), None)

    async def rotate(self, token: str | None = None) -> str:
        token = token or await self.aws_secret.begin_rotation()
        for step in STEPS:
            await self.call(step, token)
        return token

    async def pair(self) -> CredentialPair:
        """What applications find."""
        return await self.source.fetch()

    async def accepts(self, credential: Credential | None) -> bool:
        assert credential is not None
        try:
            con = await asyncpg.connect(
                self.postgres.dsn, user=credential.username, password=credential.password.reveal
            )
        except asyncpg.InvalidAuthorizationSpecificationError:
            return False
        await con.close()
        return True

    async def serves(self) -> bool:
        """Whether the database accepts, for each account, a password that applications can find."""
        pair = await self.pair()
        for account in (pair.odd, pair.even):
            assert account is not None
            known = [one for one in pair.credentials() if one.username == account.username]
            if not any([await self.accepts(one) for one in known]):
                return False
        return True


@pytest.fixture
async def rig(postgres: RotatingPostgres, aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    server = postgres.server
    admin = await aws_secret.service.create_secret(
        {"username": server.admin, "password": server.admin_password.reveal()}
    )
    for name, value in {
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": aws_secret.service.endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AIOPQR_ADMIN_SECRET": admin,
        "AIOPQR_ANNOUNCE": "0",
        "AIOPQR_DSN": postgres.dsn,
    }.items():
        monkeypatch.setenv(name, value)
    rig = Rig(postgres, aws_secret)
    await rig.start()
    yield rig
    await rig.close()


async def test_four_steps_rotate_one_account(rig: Rig) -> None:
    before = await rig.pair()
    token = await rig.rotate()
    after = await rig.pair()
    assert await rig.aws_secret.version("AWSCURRENT") == token
    changed = [one for one in (before.odd, before.even) if one not in (after.odd, after.even)]
    assert len(changed) == 1
    assert not await rig.accepts(changed[0])
    assert await rig.accepts(after.odd)
    assert await rig.accepts(after.even)
    assert after.pending is None
    assert after[after.active] not in (before.odd, before.even)


@pytest.mark.parametrize(("remaining", "waits"), [(60.0, True), (20.0, False)])
async def test_pools_have_the_time_to_step_aside_where_the_functions_timeout_allows_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, remaining: float, waits: bool
) -> None:
    monkeypatch.setenv("AIOPQR_ANNOUNCE", "6")
    token = await rig.aws_secret.begin_rotation()
    await rig.call("createSecret", token)
    staged_at = (await rig.pair()).pending_since
    assert staged_at
    event = {"SecretId": rig.aws_secret.name, "ClientRequestToken": token, "Step": "setSecret"}
    context = type("Context", (), {"get_remaining_time_in_millis": lambda self: int(1000 * remaining)})()
    await asyncio.to_thread(handler, event, context)
    assert (datetime.now(UTC) - staged_at >= timedelta(seconds=6)) is waits
    assert await rig.accepts((await rig.pair()).pending)


async def test_two_rotations_alternate_when_pools_had_their_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIOPQR_MAX_LIFETIME", "AIOPQR_REFRESH_INTERVAL", "AIOPQR_MARGIN"):
        monkeypatch.setenv(name, "0")
    before = await rig.pair()
    for _ in range(2):
        await rig.aws_secret.finish(await rig.rotate())
    after = await rig.pair()
    assert before.odd != after.odd
    assert before.even != after.even
    assert await rig.serves()


async def test_the_second_rotation_is_refused_before_anything_is_written(rig: Rig) -> None:
    await rig.aws_secret.finish(await rig.rotate())
    token = await rig.aws_secret.begin_rotation()
    before = await rig.aws_secret.stages()
    with pytest.raises(RotationRefused, match="too-soon"):
        await rig.call("createSecret", token)
    assert await rig.aws_secret.stages() == before
    with pytest.raises(rig.aws_secret.client.exceptions.ResourceNotFoundException):
        await rig.aws_secret.value("AWSPENDING")
    assert await rig.serves()


async def test_a_refusal_can_pass_and_the_same_token_then_rotates(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.start(age=100.0)
    token = await rig.aws_secret.begin_rotation()
    with pytest.raises(RotationRefused):
        await rig.call("createSecret", token)
    monkeypatch.setenv("AIOPQR_MAX_LIFETIME", "0")
    monkeypatch.setenv("AIOPQR_MARGIN", "0")
    await rig.rotate(token)
    assert await rig.aws_secret.version("AWSCURRENT") == token


async def test_an_account_that_does_not_log_in_is_refused(rig: Rig) -> None:
    pair = await rig.pair()
    assert pair.odd is not None
    await rig.postgres.server.set_password(pair.odd.username, "something else")
    token = await rig.aws_secret.begin_rotation()
    with pytest.raises(RotationRefused):
        await rig.call("createSecret", token)


async def test_each_step_repeated_does_nothing_more(rig: Rig) -> None:
    token = await rig.aws_secret.begin_rotation()
    values = []
    for step in STEPS:
        for _ in range(2):
            await rig.call(step, token)
            assert await rig.serves()
        if step != "finishSecret":
            values.append(await rig.aws_secret.value("AWSPENDING"))
    assert values[0] == values[1] == values[2] == await rig.aws_secret.value()
    stages = await rig.aws_secret.stages()
    for step in STEPS:
        await rig.call(step, token)
    assert await rig.aws_secret.stages() == stages
    assert await rig.serves()


class Crash(BaseException):
    """The end of the process, as far as the code can see."""


class Reaper:
    """Counts the moments around everything that leaves a trace, and ends the function at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fatal: int | None = None
        self.moments: list[str] = []
        request, alter = SecretsManagerClient.request, Database.alter

        async def request_(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
            if operation not in ("put_secret_value", "update_secret_version_stage"):
                return await request(client, operation, secret_id, **more)
            self.moment(f"before {operation}")
            answer = await request(client, operation, secret_id, **more)
            self.moment(f"after {operation}")
            return answer

        async def alter_(database: Database, con: Any, credential: Credential, *options: Any) -> None:
            self.moment("before ALTER ROLE")
            await alter(database, con, credential, *options)
            self.moment("after ALTER ROLE")

        monkeypatch.setattr(SecretsManagerClient, "request", request_)
        monkeypatch.setattr(Database, "alter", alter_)

    def moment(self, name: str) -> None:
        self.moments.append(name)
        if self.fatal == len(self.moments) - 1:
            raise Crash


async def test_every_crashed_step_leaves_all_accounts_served_and_the_repetition_finishes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper = Reaper(monkeypatch)
    await rig.rotate()
    moments = list(reaper.moments)
    assert moments == [
        f"{when} {what}"
        for what in ("put_secret_value", "ALTER ROLE", "update_secret_version_stage")
        for when in ("before", "after")
    ]
    for fatal, moment in enumerate(moments):
        pair = await rig.pair()  # the store and the database agree again
        rig.postgres.pair = CredentialPair(pair.odd, pair.even)
        await rig.start()
        token = await rig.aws_secret.begin_rotation()
        reaper.fatal, reaper.moments = fatal, []
        for step in STEPS:
            try:
                await rig.call(step, token)
            except Crash:
                reaper.fatal = None
                assert await rig.serves(), f"crashed {moment}"
                await rig.call(step, token)
            assert await rig.serves(), f"after {step}, crashed {moment}"
        assert reaper.fatal is None
        assert await rig.aws_secret.version("AWSCURRENT") == token
        assert (await rig.pair()).pending is None


async def test_set_secret_repeated_renews_valid_until_once(rig: Rig) -> None:
    even = rig.postgres.pair.even
    assert even is not None
    server, until = rig.postgres.server, "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1"
    await server.execute(f"ALTER ROLE \"{even.username}\" VALID UNTIL '{datetime.now(UTC) + timedelta(days=10)}'")
    token = await rig.aws_secret.begin_rotation()
    await rig.call("createSecret", token)
    await rig.call("setSecret", token)
    renewed = await server.fetchval(until, even.username)
    await rig.call("setSecret", token)
    assert await server.fetchval(until, even.username) == renewed > datetime.now(UTC) + timedelta(days=10)


async def test_steps_out_of_order_finish_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiopqr.rotation.database._REFUSED_LOGINS", 1)
    token = await rig.aws_secret.begin_rotation()
    with pytest.raises(RotationError, match="nothing to finish"):
        await rig.call("finishSecret", token)
    await rig.call("setSecret", token)
    await rig.call("createSecret", token)
    for step in ("testSecret", "finishSecret"):
        with pytest.raises(RotationError, match="cannot log in"):
            await rig.call(step, token)
    assert await rig.aws_secret.version("AWSCURRENT") != token
    assert await rig.serves()


async def test_a_step_of_a_rotation_that_another_one_has_followed_changes_nothing(rig: Rig) -> None:
    old = await rig.aws_secret.begin_rotation()
    await rig.call("createSecret", old)
    new = await rig.aws_secret.begin_rotation()
    for step in STEPS:
        with pytest.raises(RotationError, match="no longer in AWSPENDING"):
            await rig.call(step, old)
    await rig.rotate(new)
    assert await rig.serves()


@pytest.mark.parametrize(("step", "lock"), [("createSecret", "exclusively"), ("setSecret", "altering")])
async def test_a_step_that_slept_until_the_next_rotation_had_begun_changes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str, lock: str
) -> None:
    token, here = await rig.aws_secret.begin_rotation(), asyncio.get_running_loop()
    if step == "setSecret":
        await rig.call("createSecret", token)
    staged = (await rig.pair()).pending
    original, newer = getattr(Database, lock), []

    @contextlib.asynccontextmanager
    async def sleeping(database: Database, pair: CredentialPair) -> AsyncIterator[Any]:
        if not newer:  # the function has its own loop
            begun = asyncio.run_coroutine_threadsafe(rig.aws_secret.begin_rotation(), here)
            newer.append(await asyncio.wrap_future(begun))
        async with original(database, pair) as con:
            yield con

    monkeypatch.setattr(Database, lock, sleeping)
    with pytest.raises(RotationError, match="no longer in AWSPENDING"):
        await rig.call(step, token)
    assert await rig.aws_secret.version("AWSPENDING") == newer[0]
    assert staged is None or not await rig.accepts(staged)
    assert await rig.serves()


async def test_the_command_lines_rotator_finishes_what_the_function_left(rig: Rig) -> None:
    token = await rig.aws_secret.begin_rotation()
    await rig.call("createSecret", token)
    await rig.call("setSecret", token)
    async with SecretsManagerStore(rig.aws_secret.name, **rig.aws_secret.options) as store:
        rotator = Rotator(admin=rig.postgres.server.admin_connect, store=store, verify=rig.postgres.dsn, announce=0.0)
        await rotator.apply(await rotator.plan())
    pair = await rig.pair()
    assert pair.pending is None
    assert await rig.accepts(pair.odd)
    assert await rig.accepts(pair.even)


async def test_rotation_set_up_without_rotating_tests_the_setup(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.start(age=1.0)
    token = await rig.aws_secret.put(await rig.aws_secret.value(), "AWSPENDING")
    with caplog.at_level(logging.INFO, logger="aiopqr"):
        await rig.call("testSecret", token)
    assert "both accounts log in, and a rotation would be refused now" in caplog.text
    assert rig.postgres.pair.odd is not None
    await rig.postgres.server.set_password(rig.postgres.pair.odd.username, "something else")
    with pytest.raises(RotationError, match="cannot log in"):
        await rig.call("testSecret", token)


async def test_the_admin_secret_can_be_named_by_the_secret_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = os.environ["AIOPQR_ADMIN_SECRET"]
    monkeypatch.delenv("AIOPQR_ADMIN_SECRET")
    token = await rig.aws_secret.begin_rotation()
    with pytest.raises(ConfigurationError, match="masterarn"):
        await rig.call("createSecret", token)
    await rig.start(masterarn=admin)
    await rig.rotate()
    assert (await rig.aws_secret.value())["masterarn"] == admin


async def test_a_role_that_is_no_superuser_rotates_with_the_documented_grants(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, (odd, even) = rig.postgres.server, rig.postgres.usernames
    name = f"{rig.postgres.database}_rotator"
    await server.execute(
        f"CREATE ROLE \"{name}\" LOGIN CREATEROLE PASSWORD 'rotator';"
        f'GRANT "{odd}", "{even}" TO "{name}" WITH ADMIN OPTION; GRANT pg_read_all_stats TO "{name}"'
    )
    try:
        admin = await rig.aws_secret.service.create_secret({"username": name, "password": "rotator"})
        monkeypatch.setenv("AIOPQR_ADMIN_SECRET", admin)
        token = await rig.rotate()
        assert await rig.aws_secret.version("AWSCURRENT") == token
    finally:
        await server.drop_accounts(name)


async def test_without_a_dsn_the_secret_tells_the_place_and_tls_is_never_left_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOPQR_DSN")
    token = await rig.aws_secret.begin_rotation()
    with pytest.raises(RotationError, match="nothing says where the database is"):
        await rig.call("createSecret", token)
    server = rig.postgres.server
    await rig.start(host=server.host, port=server.port, dbname=rig.postgres.database)
    if not await server.fetchval("SELECT current_setting('ssl')::bool"):
        with pytest.raises(RotationError, match=r"(?i)ssl"):
            await rig.call("createSecret", await rig.aws_secret.begin_rotation())


@pytest.mark.parametrize("event", [{}, {"SecretId": "x"}, {"SecretId": "x", "ClientRequestToken": "t", "Step": "y"}])
def test_an_event_of_something_else_is_refused(event: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        handler(event, None)


async def test_a_number_that_is_none_is_told_by_name(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOPQR_MARGIN", "two minutes")
    with pytest.raises(ConfigurationError, match="AIOPQR_MARGIN"):
        await rig.call("createSecret", str(uuid.uuid4()))


async def test_no_log_of_function_or_server_shows_a_password(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.postgres.server.configure(log_statement="all")
    try:
        with caplog.at_level(logging.DEBUG):
            await rig.rotate()
    finally:
        await rig.postgres.server.configure(log_statement=None)
    new = (await rig.aws_secret.value())[f"{(await rig.pair()).active}_password"]
    assert new not in "".join(record.getMessage() for record in caplog.records if "test" not in record.name)
    assert "ALTER ROLE" in rig.postgres.server.log_text()
    assert new not in rig.postgres.server.log_text()
