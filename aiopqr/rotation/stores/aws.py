"""A secret store for a pair in one secret of AWS Secrets Manager. Staging labels serve as its compare-and-set.

Every version holds a whole secret. A staged password is the version in AWSPENDING, which differs from AWSCURRENT in one
account's password. A new version is first written with a label of our own, AIOPQR_WRITTEN, which nobody reads, because
writing it with AWSPENDING or AWSCURRENT would take that label from any version that has it. Then AWSPENDING or
AWSCURRENT is moved, and AWS refuses that unless the label is still where this rotator saw it. The rotation Lambda
(:mod:`.aws_lambda`) uses the same format.

A role that rotates needs DescribeSecret, GetSecretValue, PutSecretValue and UpdateSecretVersionStage on the secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from ...credentials import Credential, CredentialPair, parse_secret
from ...errors import InvalidSecret, without_frames
from ...sources.aws.client import SecretsManagerClient, SecretsManagerError
from ...sources.trouble import Trouble
from ..errors import StoreConflict, StoreError
from .aws_versions import Snapshot, Version, staged_entries, stored
from .document import new_document, promoted
from .store import StoredSecret

_T = TypeVar("_T")

CURRENT, PENDING, WRITTEN = "AWSCURRENT", "AWSPENDING", "AIOPQR_WRITTEN"


class SecretsManagerStore:
    """A secret store for a pair in one secret of AWS Secrets Manager.

    ``secret_id`` and the options are those of :class:`aiopqr.sources.SecretsManagerSource`, which reads the secret. Use
    the store as an async context manager, or call :meth:`aclose`.
    """

    def __init__(
        self,
        secret_id: str,
        *,
        session: Any = None,
        region_name: str | None = None,
        endpoint_url: str | None = None,
        role_arn: str | None = None,
        config: Any = None,
    ) -> None:
        self.secret_id = secret_id
        self._client = SecretsManagerClient(
            session=session, region_name=region_name, endpoint_url=endpoint_url, role_arn=role_arn, config=config
        )

    def __repr__(self) -> str:
        return f"SecretsManagerStore({self.secret_id!r})"

    def __str__(self) -> str:
        return f"secret {self.secret_id!r}"

    async def read(self) -> StoredSecret:
        """See :meth:`SecretStore.read`."""
        return await self.run(self._read())

    async def check_writable(self) -> None:
        """Raise :class:`StoreError` if the secret is a replica, which is read-only. Changes nothing.

        AWS does not say in advance whether this role may write the secret. If it may not, the rotation fails at its
        first step, staging, before any password has changed.
        """
        await self.run(self._check_writable())

    async def stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
        """See :meth:`SecretStore.stage`."""
        return await self.run(self._stage(secret, credential))

    async def promote(self, secret: StoredSecret, *, changed_at: datetime) -> StoredSecret:
        """See :meth:`SecretStore.promote`."""
        return await self.run(self._promote(secret, changed_at))

    async def abandon(self, secret: StoredSecret) -> StoredSecret:
        """See :meth:`SecretStore.abandon`."""
        return await self.run(self._abandon(secret))

    async def create(self, pair: CredentialPair, *, changed_at: datetime) -> StoredSecret:
        """Create the secret. ``changed_at`` is when both accounts got their passwords.

        Raises :class:`StoreConflict` if a secret of that name exists.
        """
        return await self.run(self._create(pair, changed_at))

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # The Lambda uses these too. The frames of these methods hold secrets, so call them through `run`.

    async def run(self, step: Awaitable[_T]) -> _T:
        """Await a step. Errors of AWS or of the secret's value are raised as :class:`StoreError`, without frames."""
        try:
            return await step
        except SecretsManagerError as exc:
            problem = StoreError(str(exc))
        except InvalidSecret as exc:
            problem = StoreError(f"secret {self.secret_id!r}: {exc}")
        except StoreError as exc:
            problem = without_frames(exc)
        raise problem  # outside the handlers, because the frames of the caught error hold the secret

    async def snapshot(self) -> Snapshot:
        """Read the stages, consistent with a single DescribeSecret."""
        about = await self._request("describe_secret")
        current_id, pending_id = _holder(about, CURRENT), _holder(about, PENDING)
        if current_id is None:
            raise StoreError(f"secret {self.secret_id!r} has no AWSCURRENT version yet")
        pending = None
        if pending_id not in (None, current_id):
            try:
                pending = await self._version(pending_id)
            except SecretsManagerError as exc:
                if exc.trouble is not Trouble.NO_VALUE:
                    raise
        return Snapshot(await self._version(current_id), pending_id, pending, about.get("LastRotatedDate"))

    async def put(self, entries: Mapping[str, Any], stage: str, *, token: str, binary: bool = False) -> Version:
        """Write a new version with the label ``stage``, which is taken from any version that has it."""
        text = json.dumps(entries)
        value: dict[str, Any] = {"SecretBinary": text.encode()} if binary else {"SecretString": text}
        await self._request("put_secret_value", ClientRequestToken=token, VersionStages=[stage], **value)
        return Version(token, entries, datetime.now(UTC), binary)

    async def move(self, stage: str, *, to: str | None, away: str | None) -> dict[str, Any]:
        """Move a label from one version to another. Raises :class:`StoreConflict` if it is somewhere else by now.

        Returns the result of DescribeSecret after that.
        """
        refused = False
        moves = {"MoveToVersionId": to, "RemoveFromVersionId": away}
        try:
            await self._request(
                "update_secret_version_stage",
                VersionStage=stage,
                **{key: version for key, version in moves.items() if version},
            )
        except SecretsManagerError as exc:
            if exc.trouble not in (Trouble.INVALID, Trouble.CONFLICT, Trouble.NOT_FOUND, Trouble.NO_VALUE):
                raise
            refused = True  # perhaps because botocore repeated a request that had already succeeded
        about = await self._request("describe_secret")
        if _holders(about, stage) != ({to} if to else set()) or (refused and to is None):
            raise StoreConflict(f"{stage} of secret {self.secret_id!r} is not where it was: somebody else has moved it")
        return about

    # The methods above without `run`.

    async def _check_writable(self) -> None:
        about = await self._request("describe_secret")
        here, primary = about["ARN"].split(":")[3], about.get("PrimaryRegion")
        if primary not in (None, here):
            raise StoreError(
                f"secret {self.secret_id!r} is a replica in {here}, which is read-only, and nothing was changed: "
                f"rotate it in {primary}"
            )

    async def _read(self) -> StoredSecret:
        return stored(await self.snapshot(), self.secret_id)

    async def _stage(self, secret: StoredSecret, credential: Credential) -> StoredSecret:
        snapshot = await self._unchanged(secret)
        version = await self._write(staged_entries(snapshot, secret, credential, datetime.now(UTC)), snapshot)
        try:
            about = await self.move(PENDING, to=version.id, away=snapshot.pending_id)
            if _holder(about, CURRENT) != snapshot.current.id:
                raise StoreConflict(f"secret {self.secret_id!r} has changed since it was read")
        except StoreConflict:
            with contextlib.suppress(SecretsManagerError, StoreConflict):
                await self.move(PENDING, to=None, away=version.id)
            raise
        return stored(dataclasses.replace(snapshot, pending_id=version.id, pending=version), self.secret_id)

    async def _promote(self, secret: StoredSecret, changed_at: datetime) -> StoredSecret:
        snapshot = await self._unchanged(secret)
        version = await self._write(promoted(snapshot.current.entries, secret, changed_at), snapshot)
        # Move AWSPENDING first. That is harmless, because the new version has the same password of the account. If two
        # rotators compete, the one whose version gets both labels has won.
        await self.move(PENDING, to=version.id, away=snapshot.pending_id)
        await self.move(CURRENT, to=version.id, away=snapshot.current.id)
        pending_id: str | None = version.id
        with contextlib.suppress(SecretsManagerError, StoreConflict):
            await self.move(PENDING, to=None, away=version.id)
            pending_id = None
        return stored(Snapshot(version, pending_id, None, snapshot.rotated), self.secret_id)

    async def _abandon(self, secret: StoredSecret) -> StoredSecret:
        snapshot = await self._unchanged(secret)
        if secret.pair.pending is None:
            raise StoreConflict("no new password is staged")
        await self.move(PENDING, to=None, away=snapshot.pending_id)
        return stored(dataclasses.replace(snapshot, pending_id=None, pending=None), self.secret_id)

    async def _create(self, pair: CredentialPair, changed_at: datetime) -> StoredSecret:
        entries, token = new_document(pair, changed_at), str(uuid.uuid4())
        try:
            await self._request("create_secret", SecretString=json.dumps(entries), ClientRequestToken=token)
        except SecretsManagerError as exc:
            if exc.trouble is not Trouble.CONFLICT:
                raise
            raise StoreConflict(f"secret {self.secret_id!r} exists") from None
        return stored(Snapshot(Version(token, entries)), self.secret_id)

    async def _unchanged(self, secret: StoredSecret) -> Snapshot:
        snapshot = await self.snapshot()
        if snapshot.revision != secret.revision:
            raise StoreConflict(f"secret {self.secret_id!r} has changed since it was read")
        return snapshot

    async def _write(self, entries: Mapping[str, Any], snapshot: Snapshot) -> Version:
        return await self.put(entries, WRITTEN, token=str(uuid.uuid4()), binary=snapshot.current.binary)

    async def _version(self, version_id: str | None) -> Version:
        answer = await self._request("get_secret_value", VersionId=version_id)
        binary = "SecretString" not in answer
        entries = parse_secret(answer["SecretBinary"] if binary else answer["SecretString"])
        return Version(answer["VersionId"], entries, answer.get("CreatedDate"), binary)

    async def _request(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return await self._client.request(operation, self.secret_id, **parameters)


def _holders(about: Mapping[str, Any], stage: str) -> set[str]:
    return {version for version, stages in about.get("VersionIdsToStages", {}).items() if stage in stages}


def _holder(about: Mapping[str, Any], stage: str) -> str | None:
    return min(_holders(about, stage), default=None)
