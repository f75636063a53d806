"""The two accounts, from AWS Secrets Manager. :mod:`.layouts` has the ways in which they can lie there.

One read is consistent: DescribeSecret says which version is in which stage, and values are then fetched by version,
never by stage. A version's value never changes, so a poll costs one DescribeSecret and fetches what is new.

The application's role needs ``secretsmanager:DescribeSecret`` and ``secretsmanager:GetSecretValue`` on the secret, and
``kms:Decrypt`` on its key where that is not the account's default key.
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
    """One secret, or two, in AWS Secrets Manager.

    ``secret_id`` is a name or an ARN. With ``even_secret_id``, each of the two secrets has one account, and
    ``secret_id`` has the odd one. ``layout`` is ``"pair"`` (one secret with gopqr's five keys), ``"alternating"`` (one
    secret, rotated by AWS's alternating-users rotation) or ``"two-secrets"``; by default the secret's keys decide.

    ``session``, ``region_name``, ``endpoint_url`` and ``config`` are passed on to aioboto3; ``role_arn`` names a role
    to assume. The client is opened by the first fetch and closed by :meth:`aclose`, which the refresher calls.

    ``interval`` is the time in seconds between two polls. The very first fetch waits for a random time of up to
    ``start_spread`` seconds, so that a fleet that starts together does not call the store all at once. Use 0 for a
    command line, a Lambda, or a service of few instances. (The refresher spreads all later fetches.)
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
        """Return the pair as the stages have it now. Raises :class:`SecretsManagerError`. May be cancelled."""
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
        """If one of the two is gone permanently, the other one is used, with what was last known of the first."""
        found: list[Stages | None] = []
        problems: list[SecretsManagerError] = []
        for secret in self._secrets:
            try:
                found.append(await secret.read())
            except SecretsManagerError as exc:
                if exc.trouble.is_passing:
                    raise
                found.append(secret.last)
                problems.append(exc)
                if secret.complained != exc.trouble:
                    logger.warning(
                        "%s; going on with %s", exc, "its last value" if secret.last else "the other account alone"
                    )
                secret.complained = exc.trouble
            else:
                secret.complained = None
        if len(problems) == len(self._secrets):
            raise problems[0]
        names = " and ".join(secret.secret_id for secret in self._secrets)
        return _composed(lambda: from_two(*found), names)


class _Secret:
    """One secret, and the values of its versions that are known already."""

    def __init__(self, client: SecretsManagerClient, secret_id: str) -> None:
        self._client = client
        self.secret_id = secret_id
        self.last: Stages | None = None
        self.complained: Trouble | None = None
        self._values: dict[str, Value | InvalidSecret] = {}
        self._created: dict[str, datetime | None] = {}

    async def read(self) -> Stages:
        """The values of its stages, all as of one DescribeSecret."""
        for _ in range(_READS - 1):
            try:
                return await self._read()
            except SecretsManagerError as exc:
                # A version that a stage has just left is gone soon after: the stages are looked up again.
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
        """A version's value. Of those that are not needed, one that is missing or makes no sense counts as absent."""
        if version not in self._values:
            try:
                answer = await self._client.request("get_secret_value", self.secret_id, VersionId=version)
                self._values[version], self._created[version] = _parsed(answer), answer.get("CreatedDate")
            except SecretsManagerError as exc:
                if exc.trouble is Trouble.NO_VALUE and not needed:
                    return None  # AWSPENDING's version exists before its value does
                raise
        value = self._values[version]
        if not isinstance(value, InvalidSecret):
            return value
        if needed:
            raise SecretsManagerError(f"secret {self.secret_id!r}: {value}", Trouble.INVALID)
        return None


def _parsed(answer: dict[str, Any]) -> Value | InvalidSecret:
    """The answer of GetSecretValue, of which no text is kept."""
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
