"""Secrets Manager for the tests: moto's server, and LocalStack if Docker answers."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import botocore.loaders
import pytest

from aiopqr.testing.aws import ContainerSecretsManager, EmbeddedSecretsManager, SecretsManager

PAIR = {
    "odd_username": "app_odd",
    "odd_password": "odd-1",
    "even_username": "app_even",
    "even_password": "even-1",
    "active_credential": "even",
    "odd_changed_at": "2025-03-01T10:00:00+00:00",
    "even_changed_at": "2025-03-01T11:00:00+00:00",
    "engine": "postgres",
}


@pytest.fixture(scope="session", autouse=True)
def _models_are_read_once() -> Iterator[None]:
    """botocore reads its service models for each session anew, which takes most of the time of a short test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(scope="session", params=["moto", "localstack"])
def service(request: pytest.FixtureRequest) -> Iterator[SecretsManager]:
    """A Secrets Manager over HTTP."""
    chosen = EmbeddedSecretsManager() if request.param == "moto" else ContainerSecretsManager()
    with chosen:
        yield chosen


class AwsSecret:
    """One secret, changed as an operator or AWS would change it."""

    def __init__(self, service: SecretsManager, client: Any, name: str) -> None:
        self.service = service
        self.client = client
        self.name = name

    @property
    def options(self) -> dict[str, Any]:
        return self.service.options

    async def put(self, value: object, *stages: str) -> str:
        """A new version, as if written by hand; in AWSCURRENT unless stages are named."""
        token = str(uuid.uuid4())
        await self.client.put_secret_value(
            SecretId=self.name,
            SecretString=value if isinstance(value, str) else json.dumps(value),
            ClientRequestToken=token,
            VersionStages=list(stages) or ["BY_HAND"],
        )
        if not stages:
            # What PutSecretValue does to AWSCURRENT by itself. moto takes it from the version that had it first.
            await self.move("AWSCURRENT", token, await self.version("AWSCURRENT"))
        return token

    async def move(self, stage: str, to: str | None = None, away: str | None = None) -> None:
        moves = {"MoveToVersionId": to, "RemoveFromVersionId": away}
        await self.client.update_secret_version_stage(
            SecretId=self.name, VersionStage=stage, **{key: value for key, value in moves.items() if value}
        )

    async def finish(self, token: str) -> None:
        """What AWS's own finishSecret does."""
        await self.move("AWSCURRENT", token, await self.version("AWSCURRENT"))
        if await self.version("AWSPENDING") == token:
            await self.move("AWSPENDING", away=token)

    async def begin_rotation(self) -> str:
        """What the service does before it calls createSecret: AWSPENDING on a version without a value."""
        token = str(uuid.uuid4())
        missing = "arn:aws:lambda:eu-central-1:123456789012:function:none"
        try:
            await self.client.rotate_secret(
                SecretId=self.name,
                ClientRequestToken=token,
                RotationLambdaARN=missing,
                RotationRules={"AutomaticallyAfterDays": 30},
            )
        except self.client.exceptions.ResourceNotFoundException:
            pass  # moto has made the version before it notices that there is no function
        if await self.version("AWSPENDING") != token:
            pytest.skip("this service makes no version before the rotation function exists")
        return token

    async def version(self, stage: str) -> str | None:
        return next((id_ for id_, stages in (await self.stages()).items() if stage in stages), None)

    async def stages(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = (await self.client.describe_secret(SecretId=self.name))["VersionIdsToStages"]
        return found

    async def value(self, stage: str = "AWSCURRENT") -> Any:
        answer = await self.client.get_secret_value(SecretId=self.name, VersionStage=stage)
        return json.loads(answer["SecretString"])


@pytest.fixture
async def client(service: SecretsManager) -> AsyncIterator[Any]:
    async with service.client() as client:
        yield client


@pytest.fixture
async def aws_secret(service: SecretsManager, client: Any) -> AwsSecret:
    """A secret that holds a pair."""
    return AwsSecret(service, client, await service.create_secret(PAIR))
