"""Secrets Manager as a store: each change is durable, exclusive, and keeps what is not its own."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.moto import PAIR, AwsSecret

from aiopqr.credentials import Credential, CredentialPair, Parity
from aiopqr.rotation.errors import StoreConflict, StoreError
from aiopqr.rotation.stores.aws import SecretsManagerStore
from aiopqr.rotation.stores.aws_versions import Snapshot, Version, stored
from aiopqr.rotation.stores.store import SecretStore, StoredSecret
from aiopqr.sources import SecretsManagerSource
from aiopqr.sources.aws.client import SecretsManagerClient, SecretsManagerError
from aiopqr.sources.trouble import Trouble

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
NEW = Credential("app_odd", "odd-2")
NEWER = Credential("app_even", "even-2")


@pytest.fixture
async def store(aws_secret: AwsSecret) -> AsyncIterator[SecretsManagerStore]:
    async with SecretsManagerStore(aws_secret.name, **aws_secret.options) as store:
        yield store


async def fetched(aws_secret: AwsSecret) -> CredentialPair:
    source = SecretsManagerSource(aws_secret.name, start_spread=0.0, **aws_secret.options)
    try:
        return await source.fetch()
    finally:
        await source.aclose()


def test_it_is_a_secret_store() -> None:
    assert isinstance(SecretsManagerStore("x"), SecretStore)


async def test_reading_tells_the_pair_the_change_times_and_the_other_keys(store: SecretsManagerStore) -> None:
    secret = await store.read()
    assert secret.pair.odd == Credential("app_odd", "odd-1")
    assert secret.changed_at(Parity.EVEN) == NOON - timedelta(hours=1)
    assert secret.other == {"engine": "postgres"}
    assert (secret.pair.pending, secret.staged_at) == (None, None)


async def test_without_change_times_a_version_is_as_old_as_its_creation(aws_secret: AwsSecret) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    await aws_secret.put({key: value for key, value in PAIR.items() if not key.endswith("_at")})
    async with SecretsManagerStore(aws_secret.name, **aws_secret.options) as store:
        secret = await store.read()
    assert secret.odd_changed_at is not None
    assert secret.odd_changed_at == secret.even_changed_at
    assert before < secret.odd_changed_at < datetime.now(UTC)


async def test_a_stage_leaves_the_pair_as_it_is_for_every_reader(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    before = await aws_secret.value()
    staged = await store.stage(await store.read(), NEW)
    assert staged == await store.read()
    assert staged.pair.pending == NEW
    assert staged.staged_at is not None
    assert datetime.now(UTC) - staged.staged_at < timedelta(seconds=30)
    assert staged.odd_changed_at == NOON - timedelta(hours=2)
    assert await aws_secret.value() == before
    pair = await fetched(aws_secret)
    assert (pair.odd, pair.active, pair.pending) == (Credential("app_odd", "odd-1"), Parity.EVEN, NEW)


async def test_a_promoted_password_is_the_accounts_own_and_the_account_active(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    promoted = await store.promote(await store.stage(await store.read(), NEW), changed_at=NOON)
    assert promoted == await store.read()
    assert promoted.pair.odd == NEW
    assert (promoted.pair.active, promoted.pair.pending, promoted.staged_at) == (Parity.ODD, None, None)
    assert promoted.odd_changed_at == NOON
    assert promoted.even_changed_at == NOON - timedelta(hours=1)
    assert await aws_secret.version("AWSPENDING") is None
    pair = await fetched(aws_secret)
    assert (pair.odd, pair.active, pair.pending) == (NEW, Parity.ODD, None)


async def test_a_rotation_keeps_other_keys_in_value_and_order(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    secret = {"engine": "postgres", **PAIR, "note": "grüße \U0001f600", "port": 5432}
    await aws_secret.put(secret)
    await store.promote(await store.stage(await store.read(), NEW), changed_at=NOON)
    after = await aws_secret.value()
    assert list(after) == list(secret)
    assert {key: after[key] for key in ("engine", "note", "port")} == {
        key: secret[key] for key in ("engine", "note", "port")
    }


async def test_a_binary_secret_stays_binary(aws_secret: AwsSecret) -> None:
    name = await aws_secret.service.create_secret(json.dumps(PAIR).encode())
    async with SecretsManagerStore(name, **aws_secret.options) as store:
        await store.promote(await store.stage(await store.read(), NEW), changed_at=NOON)
    answer = await aws_secret.client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
    assert json.loads(answer["SecretBinary"])["odd_password"] == "odd-2"


async def test_an_abandoned_stage_leaves_no_trace(aws_secret: AwsSecret, store: SecretsManagerStore) -> None:
    before = await store.read()
    after = await store.abandon(await store.stage(before, NEW))
    assert after == await store.read() == before
    assert (await fetched(aws_secret)).pending is None


async def test_many_rotations_alternate(store: SecretsManagerStore) -> None:
    for n in range(3):
        for name in ("app_odd", "app_even"):
            staged = await store.stage(await store.read(), Credential(name, f"{name}-{n}"))
            await store.promote(staged, changed_at=NOON)
    pair = (await store.read()).pair
    assert (pair.odd, pair.even) == (Credential("app_odd", "app_odd-2"), Credential("app_even", "app_even-2"))


@pytest.mark.parametrize("change", ["stage", "promote", "abandon"])
async def test_a_change_decided_on_an_older_revision_is_refused_and_changes_nothing(
    aws_secret: AwsSecret, store: SecretsManagerStore, change: str
) -> None:
    secret = await store.read()
    if change != "stage":
        secret = await store.stage(secret, NEW)
    await aws_secret.put({**PAIR, "even_password": "even-by-hand"})
    before = await aws_secret.stages()
    with pytest.raises(StoreConflict):
        await changed(store, secret, change)
    assert await aws_secret.stages() == before


async def changed(store: SecretsManagerStore, secret: StoredSecret, change: str) -> StoredSecret:
    match change:
        case "stage":
            return await store.stage(secret, NEWER if secret.pair.pending is None else NEW)
        case "promote":
            return await store.promote(secret, changed_at=NOON)
        case _:
            return await store.abandon(secret)


async def test_a_second_stage_is_refused(store: SecretsManagerStore) -> None:
    staged = await store.stage(await store.read(), NEW)
    with pytest.raises(StoreConflict, match="already staged"):
        await store.stage(staged, NEWER)


@pytest.mark.parametrize("change", ["promote", "abandon"])
async def test_without_a_stage_there_is_nothing_to_end(store: SecretsManagerStore, change: str) -> None:
    with pytest.raises(StoreConflict, match="no new password is staged"):
        await changed(store, await store.read(), change)


class Interloper:
    """Lets something happen just before a request: what another rotator does between our look and our change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[str, Any] = {}
        original = SecretsManagerClient.request

        async def request(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
            if act := self.before.pop(f"{operation} {more.get('VersionStage', '')}".strip(), None):
                await act()
            return await original(client, operation, secret_id, **more)

        monkeypatch.setattr(SecretsManagerClient, "request", request)


@pytest.fixture
def interloper(monkeypatch: pytest.MonkeyPatch) -> Interloper:
    return Interloper(monkeypatch)


async def test_of_two_rotators_that_stage_at_once_one_succeeds_at_most(aws_secret: AwsSecret) -> None:
    for _ in range(3):
        stores = [SecretsManagerStore(aws_secret.name, **aws_secret.options) for _ in range(2)]
        try:
            secret = await stores[0].read()
            done = await asyncio.gather(
                *(store.stage(secret, new) for store, new in zip(stores, (NEW, NEWER), strict=True)),
                return_exceptions=True,
            )
            successes = [one for one in done if isinstance(one, StoredSecret)]
            assert all(isinstance(one, StoredSecret | StoreConflict) for one in done)
            assert len(successes) <= 1
            now = await stores[0].read()
            assert now.pair.pending == (successes[0].pair.pending if successes else None)
            if now.pair.pending:
                await stores[0].abandon(now)
        finally:
            for store in stores:
                await store.aclose()


async def test_a_stage_that_finds_another_current_version_is_taken_back(
    aws_secret: AwsSecret, store: SecretsManagerStore, interloper: Interloper
) -> None:
    secret = await store.read()
    interloper.before["update_secret_version_stage AWSPENDING"] = lambda: aws_secret.put({**PAIR, "note": "by hand"})
    with pytest.raises(StoreConflict, match="has changed"):
        await store.stage(secret, NEW)
    assert await aws_secret.version("AWSPENDING") is None


async def test_a_promotion_never_overrides_a_version_put_by_hand(
    aws_secret: AwsSecret, store: SecretsManagerStore, interloper: Interloper
) -> None:
    staged = await store.stage(await store.read(), NEW)
    by_hand = {**PAIR, "even_password": "even-by-hand"}
    interloper.before["update_secret_version_stage AWSCURRENT"] = lambda: aws_secret.put(by_hand)
    with pytest.raises(StoreConflict):
        await store.promote(staged, changed_at=NOON)
    assert await aws_secret.value() == by_hand
    assert (await store.read()).pair.pending == NEW  # the database may have this one, and it is still known


async def test_a_change_that_aws_did_although_it_refused_the_repetition_counts(
    store: SecretsManagerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SecretsManagerClient.request

    async def request(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
        answer = await original(client, operation, secret_id, **more)
        if operation == "update_secret_version_stage":
            raise SecretsManagerError("the label is not there", Trouble.INVALID)
        return answer

    secret = await store.read()
    monkeypatch.setattr(SecretsManagerClient, "request", request)
    promoted = await store.promote(await store.stage(secret, NEW), changed_at=NOON)
    assert promoted.pair.odd == NEW


async def test_a_killed_writer_leaves_nothing_that_a_reader_sees(
    aws_secret: AwsSecret, store: SecretsManagerStore, interloper: Interloper
) -> None:
    async def die() -> None:
        raise KeyboardInterrupt

    before = await store.read()
    for label in ("AWSPENDING", "AWSCURRENT"):
        interloper.before[f"update_secret_version_stage {label}"] = die
        secret = await store.read()
        with pytest.raises(KeyboardInterrupt):
            await (store.stage(secret, NEW) if label == "AWSPENDING" else store.promote(secret, changed_at=NOON))
        if label == "AWSPENDING":
            assert await store.read() == before
            await store.stage(before, NEW)
    assert (await store.read()).pair.pending == NEW  # from the half-done promotion
    assert (await store.promote(await store.read(), changed_at=NOON)).pair.odd == NEW


async def test_what_lambda_or_service_have_begun_without_a_value_is_no_stage(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    await aws_secret.begin_rotation()
    secret = await store.read()
    assert secret.pair.pending is None
    assert (await store.stage(secret, NEW)).pair.pending == NEW


async def test_a_label_left_on_the_current_version_hinders_nobody(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    await aws_secret.move("AWSPENDING", to=await aws_secret.version("AWSCURRENT"))
    staged = await store.stage(await store.read(), NEW)
    assert (await store.promote(staged, changed_at=NOON)).pair.odd == NEW


@pytest.mark.parametrize(
    ("pending", "words"),
    [("not JSON", "not valid JSON"), ('{"username": "a", "password": "b"}', "names other accounts")],
)
async def test_an_awspending_of_something_else_is_left_to_a_person(
    aws_secret: AwsSecret, store: SecretsManagerStore, pending: str, words: str
) -> None:
    await aws_secret.put(pending, "AWSPENDING")
    with pytest.raises(StoreError, match=words):
        await store.read()


async def test_an_awspending_of_other_accounts_is_left_to_a_person(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    await aws_secret.put({**PAIR, "odd_username": "somebody"}, "AWSPENDING")
    with pytest.raises(StoreError, match="other accounts"):
        await store.read()


async def test_a_password_staged_among_the_keys_is_not_overlooked(
    aws_secret: AwsSecret, store: SecretsManagerStore
) -> None:
    await aws_secret.put({**PAIR, "pending_username": "app_odd", "pending_password": "odd-2"})
    with pytest.raises(StoreError, match="staged password in its keys"):
        await store.read()


async def test_a_secret_can_be_created_once(aws_secret: AwsSecret) -> None:
    pair = CredentialPair(Credential("a", "1"), Credential("b", "2"))
    async with SecretsManagerStore(f"{aws_secret.name}-new", **aws_secret.options) as store:
        created = await store.create(pair, changed_at=NOON)
        read = await store.read()
        assert (read.pair, read.odd_changed_at, read.revision) == (pair, NOON, created.revision)
        with pytest.raises(StoreConflict, match="exists"):
            await store.create(pair, changed_at=NOON)


async def test_no_error_and_no_log_line_shows_a_secret(
    aws_secret: AwsSecret, store: SecretsManagerStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        staged = await store.stage(await store.read(), Credential("app_odd", "hunter2"))
        await aws_secret.client.delete_secret(SecretId=aws_secret.name, RecoveryWindowInDays=7)
        with pytest.raises(StoreError) as caught:
            await store.promote(staged, changed_at=NOON)
    ours = [record for record in caplog.records if "hunter2" in record.getMessage()]
    assert ours == []
    printed = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "hunter2" not in "".join(printed.format())
    assert "odd-1" not in "".join(printed.format())


async def test_what_aws_says_of_a_value_that_it_refuses_is_not_passed_on(
    store: SecretsManagerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    secret = await store.read()

    async def refuse(**sent: Any) -> Any:
        answer = {"Error": {"Code": "ValidationException", "Message": f"Value {sent['SecretString']!r} is too long"}}
        raise ClientError(answer, "PutSecretValue")

    monkeypatch.setattr((await store._client._here()).client, "put_secret_value", refuse)
    with pytest.raises(StoreError, match=r"put_secret_value.*ValidationException") as caught:
        await store.stage(secret, Credential("app_odd", "hunter2"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # botocore's own error goes no further


def document(**changes: str) -> dict[str, Any]:
    return {**PAIR, **changes}


def version(n: int, **changes: str) -> Version:
    return Version(f"v{n}", document(**changes), NOON)


def test_a_rotation_that_the_service_ended_later_counts_from_then() -> None:
    later = NOON + timedelta(days=1)
    secret = stored(Snapshot(version(1), rotated=later), "x")
    assert (secret.odd_changed_at, secret.even_changed_at) == (NOON - timedelta(hours=2), later)
    earlier = stored(Snapshot(version(1), rotated=NOON - timedelta(days=1)), "x")
    assert earlier.even_changed_at == NOON - timedelta(hours=1)


def test_of_two_passwords_that_differ_the_newer_one_is_staged() -> None:
    pending = version(2, odd_password="old", even_password="new", even_changed_at="2025-03-02T00:00:00+00:00")
    secret = stored(Snapshot(version(1), pending_id="v2", pending=pending), "x")
    assert secret.pair.pending == Credential("app_even", "new")


async def test_a_replica_is_known_to_be_read_only_without_writing(aws_secret: AwsSecret) -> None:
    async with SecretsManagerStore(aws_secret.name, **aws_secret.options) as store:
        await store.check_writable()
    regions = [{"Region": "eu-west-3"}]
    await aws_secret.client.replicate_secret_to_regions(SecretId=aws_secret.name, AddReplicaRegions=regions)
    replica = {**aws_secret.options, "region_name": "eu-west-3"}
    async with SecretsManagerStore(aws_secret.name, **replica) as store:
        with pytest.raises(StoreError, match=r"is a replica in eu-west-3, which is read-only.*: rotate it in "):
            await store.check_writable()
