"""The source, against a Secrets Manager over HTTP."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.moto import PAIR, AwsSecret

from aiopqr import Credential, Parity, Refresher
from aiopqr.errors import ConfigurationError, MissingExtra, SourceError
from aiopqr.sources import SecretsManagerSource
from aiopqr.sources.aws.client import SecretsManagerClient, core_of, default_session
from aiopqr.sources.aws.source import SecretsManagerError
from aiopqr.sources.trouble import Trouble
from aiopqr.testing.aws import SecretsManager
from aiopqr.testing.server import run_apart


class Requests(Counter[str]):
    """Counts requests by operation, and answers some with an error instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = SecretsManagerClient.request

        async def request(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
            self[operation] += 1
            return await original(client, operation, secret_id, **more)

        monkeypatch.setattr(SecretsManagerClient, "request", request)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


def source(aws_secret: AwsSecret, *more: str, **options: Any) -> SecretsManagerSource:
    return SecretsManagerSource(aws_secret.name, *more, **{"start_spread": 0.0, **aws_secret.options, **options})


class fetching:  # noqa: N801 - reads as a verb
    """``async with fetching(source) as fetch``: closes the source."""

    def __init__(self, source: SecretsManagerSource) -> None:
        self.source = source

    async def __aenter__(self) -> Any:
        return self.source.fetch

    async def __aexit__(self, *exc: object) -> None:
        await self.source.aclose()


async def test_a_pair_in_one_secret_is_recognised(aws_secret: AwsSecret) -> None:
    async with fetching(source(aws_secret)) as fetch:
        pair = await fetch()
    assert pair.odd == Credential("app_odd", "odd-1")
    assert pair.active is Parity.EVEN


async def test_an_alternating_secret_is_recognised_with_its_place(service: SecretsManager, client: Any) -> None:
    secret = {"username": "app", "password": "p0", "host": "db", "port": 5433, "dbname": "orders"}
    aws_secret = AwsSecret(service, client, await service.create_secret(secret))
    async with fetching(source(aws_secret)) as fetch:
        first = await fetch()
        assert (first.is_single, first.endpoint and first.endpoint.port) == (True, 5433)
        await aws_secret.finish(
            await aws_secret.put({**secret, "username": "app_clone", "password": "c1"}, "AWSPENDING")
        )
        both = await fetch()
    assert (both.odd, both.even) == (Credential("app", "p0"), Credential("app_clone", "c1"))
    assert both.active is Parity.EVEN


async def test_two_secrets_make_a_pair(aws_secret: AwsSecret) -> None:
    odd, even = [await aws_secret.service.create_secret({"username": n, "password": f"{n}-1"}) for n in ("one", "two")]
    async with fetching(SecretsManagerSource(odd, even, start_spread=0.0, **aws_secret.options)) as fetch:
        pair = await fetch()
    assert (pair.odd, pair.even) == (Credential("one", "one-1"), Credential("two", "two-1"))


async def test_a_binary_secret_is_read(aws_secret: AwsSecret) -> None:
    aws_secret.name = await aws_secret.service.create_secret(json.dumps(PAIR).encode())
    async with fetching(source(aws_secret)) as fetch:
        assert (await fetch()).even == Credential("app_even", "even-1")


async def test_a_poll_costs_one_describe_and_fetches_only_what_is_new(
    aws_secret: AwsSecret, requests: Requests
) -> None:
    async with fetching(source(aws_secret)) as fetch:
        for _ in range(3):
            await fetch()
        assert requests == {"describe_secret": 3, "get_secret_value": 1}
        await aws_secret.put({**PAIR, "odd_password": "odd-2"})
        assert (await fetch()).odd == Credential("app_odd", "odd-2")
        assert requests["get_secret_value"] == 2  # the old one, now AWSPREVIOUS, is known


async def test_a_pending_version_without_a_value_is_no_pending_password(aws_secret: AwsSecret) -> None:
    async with fetching(source(aws_secret)) as fetch:
        token = await aws_secret.begin_rotation()
        assert (await fetch()).pending is None
        await aws_secret.client.put_secret_value(
            SecretId=aws_secret.name,
            SecretString=json.dumps({**PAIR, "odd_password": "odd-2"}),
            ClientRequestToken=token,
            VersionStages=["AWSPENDING"],
        )
        pair = await fetch()
        assert pair.pending == Credential("app_odd", "odd-2")
        assert pair.pending_since
        assert abs(datetime.now(UTC) - pair.pending_since) < timedelta(minutes=1)


@pytest.mark.parametrize("nonsense", ["not JSON", "{}", '{"username": "app_odd", "password": "x"}'])
async def test_nonsense_in_awspending_does_not_stop_the_pair(aws_secret: AwsSecret, nonsense: str) -> None:
    await aws_secret.put(nonsense, "AWSPENDING")
    async with fetching(source(aws_secret)) as fetch:
        assert (await fetch()).pending is None


@pytest.mark.parametrize("nonsense", ["hunter2", '{"odd_username": "hunter2"}'])
async def test_nonsense_in_awscurrent_is_told_by_name_and_never_by_value(aws_secret: AwsSecret, nonsense: str) -> None:
    await aws_secret.put(nonsense)
    async with fetching(source(aws_secret)) as fetch:
        with pytest.raises(SecretsManagerError, match=aws_secret.name) as caught:
            await fetch()
    assert caught.value.trouble is Trouble.INVALID
    assert "hunter2" not in str(caught.value)


async def test_a_named_layout_that_the_secret_has_not_is_refused(aws_secret: AwsSecret) -> None:
    async with fetching(source(aws_secret, layout="alternating")) as fetch:
        with pytest.raises(SecretsManagerError, match='"alternating" needs the keys username'):
            await fetch()


async def test_a_missing_secret_is_told_so(aws_secret: AwsSecret) -> None:
    aws_secret.name += "-typo"
    async with fetching(source(aws_secret)) as fetch:
        with pytest.raises(SourceError, match=r"typo.*no such secret.*region_name") as caught:
            await fetch()
    assert caught.value.trouble is Trouble.NOT_FOUND  # type: ignore[attr-defined]


async def test_a_secret_scheduled_for_deletion_is_told_so_even_when_its_value_is_known(aws_secret: AwsSecret) -> None:
    async with fetching(source(aws_secret)) as fetch:
        await fetch()
        await aws_secret.client.delete_secret(SecretId=aws_secret.name, RecoveryWindowInDays=7)
        with pytest.raises(SecretsManagerError, match=r"scheduled for deletion.*restore-secret") as caught:
            await fetch()
        assert caught.value.trouble is Trouble.DELETED
        await aws_secret.client.restore_secret(SecretId=aws_secret.name)
        assert (await fetch()).odd == Credential("app_odd", "odd-1")


async def test_one_of_two_secrets_gone_leaves_its_last_value_and_a_warning(
    aws_secret: AwsSecret, caplog: pytest.LogCaptureFixture
) -> None:
    odd, even = [await aws_secret.service.create_secret({"username": n, "password": f"{n}-1"}) for n in ("one", "two")]
    known = SecretsManagerSource(odd, even, start_spread=0.0, **aws_secret.options)
    fresh = SecretsManagerSource(odd, even, start_spread=0.0, **aws_secret.options)
    async with fetching(known) as fetch, fetching(fresh) as fetch_anew:
        await fetch()
        await aws_secret.client.delete_secret(SecretId=even, RecoveryWindowInDays=7)
        await aws_secret.client.put_secret_value(SecretId=odd, SecretString='{"username": "one", "password": "one-2"}')
        for _ in range(2):
            pair = await fetch()
        assert (pair.odd, pair.even) == (Credential("one", "one-2"), Credential("two", "two-1"))
        assert (await fetch_anew()).missing is Parity.EVEN
        assert [record.levelname for record in caplog.records if "deletion" in record.message] == ["WARNING"] * 2
        await aws_secret.client.delete_secret(SecretId=odd, RecoveryWindowInDays=7)
        with pytest.raises(SecretsManagerError, match="deletion"):
            await fetch()


async def test_a_network_failure_is_told_so(aws_secret: AwsSecret, unused_tcp_port: int) -> None:
    options = {**aws_secret.options, "endpoint_url": f"http://127.0.0.1:{unused_tcp_port}"}
    async with fetching(SecretsManagerSource("x", start_spread=0.0, **options)) as fetch:
        with pytest.raises(SecretsManagerError, match="no answer from the endpoint") as caught:
            await fetch()
    assert caught.value.trouble is Trouble.NETWORK
    assert caught.value.trouble.is_transient


class _Refusing:
    """A server that answers each request with one AWS error."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        body = json.dumps({"__type": code, "message": message}).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {len(body)}\r\n"
        self._answer = f"{head}Connection: close\r\n\r\n".encode() + body
        self.requests = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        writer.write(self._answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("code", "message", "trouble", "words", "requests"),
    [
        ("AccessDeniedException", "User u is not authorized to perform x", Trouble.DENIED, "role's policy", 1),
        ("AccessDeniedException", "Access to KMS is not allowed", Trouble.KMS, "kms:Decrypt", 1),
        ("DecryptionFailure", "Secrets Manager can't decrypt", Trouble.KMS, "kms:Decrypt", 1),
        ("ThrottlingException", "Rate exceeded", Trouble.THROTTLED, "throttled", 3),
        ("ExpiredTokenException", "The security token is expired", Trouble.CREDENTIALS, "our own credentials", 1),
        ("UnrecognizedClientException", "The token is invalid", Trouble.CREDENTIALS, "our own credentials", 1),
        ("InternalServiceError", "An error occurred", Trouble.OTHER, "failed", 1),
    ],
)
async def test_what_aws_refuses_is_told_apart_and_tried_again_only_where_that_helps(
    aws_secret: AwsSecret, code: str, message: str, trouble: Trouble, words: str, requests: int
) -> None:
    from aiobotocore.config import AioConfig

    refusing = _Refusing(code, message)
    quick = AioConfig(connect_timeout=2.0)
    async with refusing as url:
        options = {**aws_secret.options, "endpoint_url": url, "config": quick}
        async with fetching(SecretsManagerSource("x", start_spread=0.0, **options)) as fetch:
            with pytest.raises(SecretsManagerError, match=words) as caught:
                await fetch()
    assert (caught.value.trouble, refusing.requests) == (trouble, requests)
    assert message in str(caught.value)


async def test_a_session_without_credentials_is_told_so(
    aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    session = default_session()
    core_of(session).set_config_variable("region", "eu-central-1")
    for role in (None, "arn:aws:iam::123456789012:role/reader"):
        async with fetching(source(aws_secret, session=session, role_arn=role)) as fetch:
            with pytest.raises(SecretsManagerError, match="our own credentials, or there are none"):
                await fetch()


async def test_a_role_is_assumed(aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws_secret.service.endpoint_url)
    reader = source(aws_secret, role_arn="arn:aws:iam::123456789012:role/reader")
    async with fetching(reader) as fetch:
        assert (await fetch()).odd == Credential("app_odd", "odd-1")
        # moto names the role that a request was signed by
        opened = await reader._client._here()
        used = await opened.client._request_signer._credentials.get_frozen_credentials()
    assert used.access_key != "testing"


async def test_a_version_that_leaves_its_stage_during_the_read_is_looked_up_again(
    aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SecretsManagerClient.request
    gone = [SecretsManagerError("gone", Trouble.NO_VALUE)]

    async def request(client: SecretsManagerClient, operation: str, secret_id: str, **more: Any) -> Any:
        if operation == "get_secret_value" and gone:
            raise gone.pop()
        return await original(client, operation, secret_id, **more)

    monkeypatch.setattr(SecretsManagerClient, "request", request)
    async with fetching(source(aws_secret)) as fetch:
        assert (await fetch()).odd == Credential("app_odd", "odd-1")


async def test_no_log_line_shows_a_secret_even_at_debug(
    aws_secret: AwsSecret, caplog: pytest.LogCaptureFixture
) -> None:
    await aws_secret.put({**PAIR, "odd_password": "hunter2"})
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        async with fetching(source(aws_secret)) as fetch:
            assert (await fetch()).odd == Credential("app_odd", "hunter2")
    assert any(record.name.startswith("botocore") for record in caplog.records)  # it did log
    assert "hunter2" not in caplog.text


async def test_the_users_own_requests_are_logged_as_ever(
    aws_secret: AwsSecret, caplog: pytest.LogCaptureFixture
) -> None:
    async with fetching(source(aws_secret)) as fetch:
        await fetch()
    with caplog.at_level(logging.DEBUG, logger="botocore.parsers"):
        await aws_secret.client.describe_secret(SecretId=aws_secret.name)
    assert any(record.name == "botocore.parsers" for record in caplog.records)


async def test_a_source_keeps_no_text_of_a_secret(aws_secret: AwsSecret) -> None:
    def holding() -> list[dict[str, Any]]:
        gc.collect()
        return [o for o in gc.get_objects() if type(o) is dict and type(o.get("SecretString")) is str]

    await aws_secret.put({**PAIR, "note": "hunter2-beside-the-password"})
    before = {id(held): held for held in holding()}  # from the client of this test, which has just sent it
    async with fetching(source(aws_secret)) as fetch:
        await fetch()
        assert [held for held in holding() if id(held) not in before] == []


async def test_the_first_fetch_alone_is_spread(aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float, *rest: Any) -> None:
        slept.append(delay)
        await real(0)

    monkeypatch.setattr("aiopqr.sources.aws.source.random.uniform", lambda low, high: high)
    monkeypatch.setattr("aiopqr.sources.aws.source.asyncio.sleep", sleep)
    async with fetching(source(aws_secret, start_spread=7.0)) as fetch:
        await fetch()
        await fetch()
    assert slept == [7.0]


async def test_a_closed_source_opens_again(aws_secret: AwsSecret) -> None:
    shared = source(aws_secret)
    async with Refresher(shared) as first:
        assert first.interval == 60.0
    async with Refresher(shared) as second:
        assert second.pair.odd == Credential("app_odd", "odd-1")


async def test_sources_shared_by_refreshers_open_one_client(
    aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Counter[str]()
    original = SecretsManagerClient._open

    async def open_(client: SecretsManagerClient, here: Any) -> None:
        opened["client"] += 1
        await original(client, here)

    monkeypatch.setattr(SecretsManagerClient, "_open", open_)
    shared = source(aws_secret)
    async with fetching(shared) as fetch:
        await asyncio.gather(*(fetch() for _ in range(5)))
    assert opened["client"] == 1


async def test_a_cancelled_fetch_leaves_the_source_usable(aws_secret: AwsSecret) -> None:
    async with fetching(source(aws_secret)) as fetch:
        task = asyncio.create_task(fetch())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await fetch()).odd == Credential("app_odd", "odd-1")


def test_a_layout_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="layout must be"):
        SecretsManagerSource("x", layout="pairs")
    with pytest.raises(ConfigurationError, match="even_secret_id"):
        SecretsManagerSource("x", layout="two-secrets")
    with pytest.raises(ConfigurationError, match="even_secret_id"):
        SecretsManagerSource("x", "y", layout="pair")


def test_a_source_serves_one_event_loop_after_the_other(service: SecretsManager) -> None:
    name = run_apart(service.create_secret(PAIR))
    shared = SecretsManagerSource(name, start_spread=0.0, **service.options)
    for _ in range(3):
        assert asyncio.run(shared.fetch()).odd == Credential("app_odd", "odd-1")
    gc.collect()  # nothing from the loops that are gone complains
    asyncio.run(shared.aclose())


def test_a_forked_child_opens_a_client_of_its_own(service: SecretsManager) -> None:
    name = run_apart(service.create_secret(PAIR))
    shared = SecretsManagerSource(name, start_spread=0.0, **service.options)

    async def parent() -> int:
        await shared.fetch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about forking a process with threads
            pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            try:
                asyncio.run(shared.fetch())
                gc.collect()
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        await shared.fetch()
        await shared.aclose()
        return status

    assert asyncio.run(parent()) == 0


@pytest.mark.parametrize("role", [None, "arn:aws:iam::123456789012:role/reader"])
async def test_a_session_of_aiobotocore_serves_without_aioboto3(
    aws_secret: AwsSecret, monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    from aiobotocore.session import get_session

    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws_secret.service.endpoint_url)
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    session = get_session()
    session.set_credentials("testing", "testing")
    session.set_config_variable("region", "eu-central-1")
    async with fetching(source(aws_secret, session=session, role_arn=role)) as fetch:
        assert (await fetch()).odd == Credential("app_odd", "odd-1")


async def test_without_aioboto3_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("aioboto3", "aiobotocore", "aiobotocore.config"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"aiopqr\[aws\]"):
        await SecretsManagerSource("x", start_spread=0.0).fetch()


def test_importing_the_source_imports_no_part_of_boto() -> None:
    program = (
        "import sys, aiopqr; from aiopqr.sources import SecretsManagerSource;"
        "SecretsManagerSource('x'); sys.exit(any('boto' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_loops_in_several_threads_share_a_source(aws_secret: AwsSecret) -> None:
    used = source(aws_secret)
    first = await used.fetch()

    async def use() -> Any:
        async with fetching(used) as fetch:
            return await fetch()

    assert await asyncio.to_thread(lambda: asyncio.run(use())) == first
    assert await used.fetch() == first
    await used.aclose()
