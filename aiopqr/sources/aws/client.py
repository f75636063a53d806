"""One client of AWS Secrets Manager: opened when it is first used, its errors told apart, and nothing of it in a log.

It stands apart because a source and a rotator's store use it alike. Everything here imports aioboto3 when it is called,
not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from ...errors import MissingExtra, SourceError
from ..trouble import Trouble

# botocore's own retries, with backoff and jitter, for throttling and passing faults. The refresher adds its own.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 3.0,
    "read_timeout": 5.0,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}


class SecretsManagerError(SourceError):
    """AWS Secrets Manager did not do what was asked for. ``trouble`` tells the kinds apart. The text is safe to log."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


ADVICE = {
    Trouble.NOT_FOUND: "there is no such secret in this region and account: check the name and region_name",
    Trouble.NO_VALUE: "that version has no value (yet)",
    Trouble.DELETED: "the secret is scheduled for deletion: `aws secretsmanager restore-secret` brings it back",
    Trouble.DENIED: "access denied: allow it in the role's policy (and in the secret's own, if it has one)",
    Trouble.KMS: "the secret's KMS key does not serve: it must be enabled, and kms:Decrypt on it allowed to this role",
    Trouble.THROTTLED: "throttled: too many requests of this account",
    Trouble.NETWORK: "no answer from the endpoint: check the network, the VPC endpoint and region_name",
    Trouble.CREDENTIALS: "AWS does not accept our own credentials, or there are none: check the session or the role",
    Trouble.CONFLICT: "the secret is not in the state that the request is for",
    Trouble.INVALID: "the request is not valid",
    Trouble.OTHER: "AWS Secrets Manager failed",
}

_CODES = {
    "ResourceNotFoundException": Trouble.NOT_FOUND,
    "AccessDeniedException": Trouble.DENIED,
    "AccessDenied": Trouble.DENIED,
    "UnauthorizedOperation": Trouble.DENIED,
    "DecryptionFailure": Trouble.KMS,
    "EncryptionFailure": Trouble.KMS,
    "KMSAccessDeniedException": Trouble.KMS,
    "KMSDisabledException": Trouble.KMS,
    "KMSInvalidStateException": Trouble.KMS,
    "KMSNotFoundException": Trouble.KMS,
    "ThrottlingException": Trouble.THROTTLED,
    "Throttling": Trouble.THROTTLED,
    "TooManyRequestsException": Trouble.THROTTLED,
    "RequestLimitExceeded": Trouble.THROTTLED,
    "UnrecognizedClientException": Trouble.CREDENTIALS,
    "InvalidClientTokenId": Trouble.CREDENTIALS,
    "InvalidSignatureException": Trouble.CREDENTIALS,
    "SignatureDoesNotMatch": Trouble.CREDENTIALS,
    "IncompleteSignature": Trouble.CREDENTIALS,
    "ExpiredToken": Trouble.CREDENTIALS,
    "ExpiredTokenException": Trouble.CREDENTIALS,
    "ResourceExistsException": Trouble.CONFLICT,
    "InvalidRequestException": Trouble.CONFLICT,
    "InvalidParameterException": Trouble.INVALID,
    "ValidationException": Trouble.INVALID,
    "LimitExceededException": Trouble.INVALID,
}


class SecretsManagerClient:
    """A client of one session, region and role, opened by the first request, usable again after :meth:`aclose`.

    The options are aioboto3's: ``session`` (an ``aioboto3.Session``), ``region_name``, ``endpoint_url`` and ``config``
    (an ``AioConfig``; what it leaves out gets short timeouts and three attempts). ``role_arn`` is assumed with the
    session's credentials, and again before they expire.
    """

    def __init__(
        self,
        *,
        session: Any = None,
        region_name: str | None = None,
        endpoint_url: str | None = None,
        role_arn: str | None = None,
        config: Any = None,
    ) -> None:
        self._session = session
        self._options = {"region_name": region_name, "endpoint_url": endpoint_url}
        self._role_arn = role_arn
        self._config = config
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None  # the process and loop of what follows
        self._lock = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._stack: contextlib.AsyncExitStack | None = None
        self._client: Any = None

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep others, and :meth:`aclose`, from the client until the block ends."""
        self._come_home()
        async with self._lock:
            yield

    async def request(self, operation: str, secret_id: str, **parameters: Any) -> dict[str, Any]:
        """One request about a secret. Raises :class:`SecretsManagerError`, with none of botocore's frames."""
        self._come_home()
        try:
            with _unlogged():
                async with self._opening:
                    if self._client is None:
                        await self._open()
                parameters["Name" if operation == "create_secret" else "SecretId"] = secret_id
                answer: dict[str, Any] = await getattr(self._client, operation)(**parameters)
                return answer
        except MissingExtra:
            raise
        except Exception as exc:
            error = _translated(exc, operation, secret_id)
        del parameters  # raised from here, with none of the frames that held a secret
        raise error

    async def aclose(self) -> None:
        """Close the client. The next request opens another."""
        self._come_home()
        async with self._lock:
            stack, self._stack, self._client = self._stack, None, None
            if stack is not None:
                await stack.aclose()

    def _come_home(self) -> None:
        """Drop a client whose event loop is gone, or whose process this one is a fork of: it cannot even be closed."""
        home = os.getpid(), asyncio.get_running_loop()
        if self._home != home:
            self._home, self._stack, self._client = home, None, None
            self._lock, self._opening = asyncio.Lock(), asyncio.Lock()

    async def _open(self) -> None:
        try:
            import aioboto3
            from aiobotocore.config import AioConfig
        except ImportError:
            raise MissingExtra("AWS Secrets Manager", "aws") from None
        for name in ("botocore.parsers", "botocore.endpoint"):
            logging.getLogger(name).addFilter(_MUTE)  # adding it twice adds it once
        if self._session is None:
            self._session = aioboto3.Session()
        session = await self._in_role(self._session) if self._role_arn else self._session
        config = AioConfig(**_DEFAULTS)
        if self._config is not None:
            config = config.merge(self._config)
        async with contextlib.AsyncExitStack() as stack:
            client = session.client("secretsmanager", config=config, **self._options)
            self._client = await stack.enter_async_context(client)
            self._stack = stack.pop_all()

    async def _in_role(self, session: Any) -> Any:
        """A session like this one whose credentials are the role's, fetched when needed."""
        import aioboto3
        from aiobotocore.credentials import AioAssumeRoleCredentialFetcher, AioDeferredRefreshableCredentials
        from aiobotocore.session import get_session
        from botocore.exceptions import NoCredentialsError

        own = session._session
        credentials = await own.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        region = self._options["region_name"] or session.region_name

        def sts(service: str, **options: Any) -> Any:
            return own.create_client(service, region_name=region, **options)

        fetcher = AioAssumeRoleCredentialFetcher(sts, credentials, self._role_arn)
        assumed = get_session()
        assumed._credentials = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        return aioboto3.Session(botocore_session=assumed, region_name=region)


def _translated(exc: Exception, operation: str, secret_id: str) -> SecretsManagerError:
    """What botocore raised, in words that tell what to do. AWS's own words of a read name identities and resources."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,  # noqa: A004
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
        TokenRetrievalError,
    )

    what = f"{operation} of secret {secret_id!r}"
    if isinstance(exc, ClientError):
        code, told = exc.response.get("Error", {}).get("Code", ""), exc.response.get("Error", {}).get("Message", "")
        if exc.operation_name == "AssumeRole":
            what = f"AssumeRole for secret {secret_id!r}"
        trouble = _CODES.get(code, Trouble.OTHER)
        if trouble is Trouble.CONFLICT and "marked" in told and "delet" in told:
            trouble = Trouble.DELETED
        elif trouble is Trouble.NOT_FOUND and "secret value" in told:
            trouble = Trouble.NO_VALUE
        elif trouble is Trouble.DENIED and "KMS" in told:
            trouble = Trouble.KMS
        if operation in ("put_secret_value", "create_secret"):
            told = ""  # a message about what we sent might quote it
        return SecretsManagerError(f"{what}: {ADVICE[trouble]} ({': '.join(filter(None, (code, told)))})", trouble)
    if isinstance(exc, NoRegionError):
        return SecretsManagerError(f"{what}: no region is given: region_name= or AWS_DEFAULT_REGION", Trouble.INVALID)
    if isinstance(exc, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        trouble = Trouble.CREDENTIALS
    elif isinstance(exc, ConnectionError | HTTPClientError | OSError):
        trouble = Trouble.NETWORK
    elif isinstance(exc, BotoCoreError):
        trouble = Trouble.INVALID
    else:
        trouble = Trouble.OTHER
    # Their texts may hold what we sent, or a proxy's password.
    return SecretsManagerError(f"{what}: {ADVICE[trouble]} ({type(exc).__name__})", trouble)


_unlogged_now: contextvars.ContextVar[bool] = contextvars.ContextVar("aiopqr_unlogged", default=False)


class _Mute(logging.Filter):
    """At DEBUG, botocore logs the body of every request and answer: a secret's value. Ours are left out, no others."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _unlogged_now.get()


_MUTE = _Mute()


@contextlib.contextmanager
def _unlogged() -> Any:
    token = _unlogged_now.set(True)
    try:
        yield
    finally:
        _unlogged_now.reset(token)
