"""Reads the two accounts from AWS Secrets Manager. :mod:`.layouts` describes how a secret can hold them.

Each read is consistent: DescribeSecret shows which version is in which stage, and values are then fetched by version,
never by stage. The value of a version never changes, so a poll needs one DescribeSecret, plus a GetSecretValue for each
new version.

The application's role needs ``secretsmanager:DescribeSecret`` and ``secretsmanager:GetSecretValue`` on the secret, and
``kms:Decrypt`` on its key unless that is the AWS account's default key.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ...credentials import CredentialPair
from ...errors import ConfigurationError, InvalidSecret
from ...options import non_negative
from ..trouble import Trouble
from .client import ADVICE, SecretsManagerClient, SecretsManagerError
from .layouts import Stages, Value, from_alternating, from_pair, from_two, parse

__all__ = ["SecretsManagerError", "SecretsManagerSource"]

logger = logging.getLogger("aiopqr")

_LAYOUTS: dict[str, Callable[[Stages], CredentialPair]] = {"pair": from_pair, "alternating": from_alternating}
_STAGES = {"current": "AWSCURRENT", "previous": "AWSPREVIOUS", "pending": "AWSPENDING"}
_READS = 3


class SecretsManagerSource:
    """One or two secrets in AWS Secrets Manager.

    ``secret_id`` is a name or an ARN. If you pass ``even_secret_id`` too, each secret holds one account: ``secret_id``
    the odd one, ``even_secret_id`` the even one. ``layout`` is ``"pair"`` (one secret with gopqr's five keys),
    ``"alternating"`` (one secret, rotated by AWS's alternating-users rotation) or ``"two-secrets"``; by default it is
    detected from the secret's keys.

    ``session``, ``region_name``, ``endpoint_url`` and ``config`` are passed to aioboto3; ``role_arn`` names a role to
    assume. The first fetch opens the client, and :meth:`aclose`, which the refresher calls, closes it.

    ``interval`` is the time in seconds between polls. The very first fetch is delayed by a random time of up to
    ``start_spread`` seconds, so that a fleet that starts together does not call AWS all at once. Use 0 for a command
    line tool, a Lambda, or a service with few instances. (The refresher spreads all later fetches.)
    """

    def __init__(
        self,
        secret_id: str,
        even_secret_id: str | None = None,
        *,
        layout: str = "auto",
        session: Any = None,
        region_name: str | None = None,
        endpoint_url: str | None = None,
        role_arn: str | None = None,
        config: Any = None,
        interval: float = 60.0,
        start_spread: float = 1.0,
    ) -> None:
        if layout not in ("auto", "two-secrets", *_LAYOUTS):
            raise ConfigurationError(f'layout must be "auto", "pair", "alternating" or "two-secrets", not {layout!r}')
        if (even_secret_id is not None) != (layout == "two-secrets") and (layout != "auto"):
            raise ConfigurationError('only layout "two-secrets" takes an even_secret_id, and it needs one')
        self._layout = layout
        self._client = SecretsManagerClient(
            session=session, region_name=region_name, endpoint_url=endpoint_url, role_arn=role_arn, config=config
        )
        self._secrets = [_Secret(self._client, name) for name in (secret_id, even_secret_id) if name is not None]
        self.interval = non_negative("interval", interval)
        self._spread = non_negative("start_spread", start_spread)

    def __repr__(self) -> str:
        return f"SecretsManagerSource({', '.join(repr(secret.secret_id) for secret in self._secrets)})"

    async def fetch(self) -> CredentialPair:
        """Return the pair that the secret's stages hold now. Raises :class:`SecretsManagerError`. May be cancelled."""
        spread, self._spread = self._spread, 0.0
        if spread:
            await asyncio.sleep(random.uniform(0.0, spread))
        async with self._client.alone():
            return await (self._fetch_one() if len(self._secrets) == 1 else self._fetch_two())

    async def aclose(self) -> None:
        """Close the client. A later fetch opens another."""
        await self._client.aclose()

    async def _fetch_one(self) -> CredentialPair:
        secret = self._secrets[0]
        stages = await secret.read()
        layout = self._layout
        if layout == "auto":
            layout = "pair" if isinstance(stages.current, CredentialPair) else "alternating"
        return _composed(lambda: _LAYOUTS[layout](stages), secret.secret_id)

    async def _fetch_two(self) -> CredentialPair:
        """Read both secrets. If one fails for good, its last known value is used; without one, the pair is degraded."""
        found: list[Stages | None] = []
        problems: list[SecretsManagerError] = []
        for secret in self._secrets:
            try:
                found.append(await secret.read())
            except SecretsManagerError as exc:
                if exc.trouble.is_transient:
                    raise
                found.append(secret.last)
                problems.append(exc)
                if secret.warned_of != exc.trouble:
                    logger.warning(
                        "%s; continuing with %s", exc, "its last value" if secret.last else "the other account alone"
                    )
                secret.warned_of = exc.trouble
            else:
                secret.warned_of = None
        if len(problems) == len(self._secrets):
            raise problems[0]
        names = " and ".join(secret.secret_id for secret in self._secrets)
        return _composed(lambda: from_two(*found), names)


class _Secret:
    """One secret, with a cache of the values of its versions."""

    def __init__(self, client: SecretsManagerClient, secret_id: str) -> None:
        self._client = client
        self.secret_id = secret_id
        self.last: Stages | None = None
        self.warned_of: Trouble | None = None
        self._values: dict[str, Value | InvalidSecret] = {}
        self._created: dict[str, datetime | None] = {}

    async def read(self) -> Stages:
        """Read the values of all stages, consistent with a single DescribeSecret."""
        for _ in range(_READS - 1):
            try:
                return await self._read()
            except SecretsManagerError as exc:
                # AWS deletes a version soon after a stage has left it. Look the stages up again.
                if exc.trouble is not Trouble.NO_VALUE:
                    raise
        return await self._read()

    async def _read(self) -> Stages:
        description = await self._client.request("describe_secret", self.secret_id)
        if description.get("DeletedDate"):
            raise SecretsManagerError(f"secret {self.secret_id!r}: {ADVICE[Trouble.DELETED]}", Trouble.DELETED)
        versions = {stage: id_ for id_, stages in description.get("VersionIdsToStages", {}).items() for stage in stages}
        wanted = {name: versions[stage] for name, stage in _STAGES.items() if stage in versions}
        values = {name: await self._value(id_, name == "current") for name, id_ in wanted.items()}
        self._values = {id_: value for id_, value in self._values.items() if id_ in wanted.values()}
        self._created = {id_: self._created.get(id_) for id_ in self._values}
        current = values.pop("current", None)
        if current is None:
            raise SecretsManagerError(f"secret {self.secret_id!r} has no AWSCURRENT version yet", Trouble.INVALID)
        self.last = Stages(current, **values, staged_at=self._created.get(wanted.get("pending", "")))
        return self.last

    async def _value(self, version: str, needed: bool) -> Value | None:
        """The value of a version. If it is not ``needed``, None stands for a value that is missing or invalid."""
        if version not in self._values:
            try:
                answer = await self._client.request("get_secret_value", self.secret_id, VersionId=version)
                self._values[version], self._created[version] = _parsed(answer), answer.get("CreatedDate")
            except SecretsManagerError as exc:
                if exc.trouble is Trouble.NO_VALUE and not needed:
                    return None  # AWS creates the version in AWSPENDING before it has a value
                raise
        value = self._values[version]
        if not isinstance(value, InvalidSecret):
            return value
        if needed:
            raise SecretsManagerError(f"secret {self.secret_id!r}: {value}", Trouble.INVALID)
        return None


def _parsed(answer: dict[str, Any]) -> Value | InvalidSecret:
    """Parse an answer of GetSecretValue. An error is returned, so that it can be cached; it holds none of the text."""
    try:
        return parse(answer["SecretString"] if "SecretString" in answer else answer["SecretBinary"])
    except InvalidSecret as exc:
        return InvalidSecret(str(exc))


def _composed(compose: Callable[[], CredentialPair], names: str) -> CredentialPair:
    try:
        return compose()
    except InvalidSecret as exc:
        problem = str(exc)
    raise SecretsManagerError(f"secret {names}: {problem}", Trouble.INVALID)
