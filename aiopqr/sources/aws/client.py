"""A client of AWS Secrets Manager that opens on first use, explains errors, and keeps secrets out of the logs.

Sources and the rotator's store use it. aioboto3 or aiobotocore is imported on the first request, not before.
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

# botocore retries throttling and transient faults itself, with backoff and jitter. The refresher adds its own retries.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 3.0,
    "read_timeout": 5.0,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}


class SecretsManagerError(SourceError):
    """A request to AWS Secrets Manager failed. ``trouble`` is the kind of failure. The text is safe to log."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


ADVICE = {
    Trouble.NOT_FOUND: "there is no such secret in this region and account: check the name and region_name",
    Trouble.NO_VALUE: "that version has no value (yet)",
    Trouble.DELETED: "the secret is scheduled for deletion: restore it with `aws secretsmanager restore-secret`",
    Trouble.DENIED: "access denied: allow it in the role's policy, and in the secret's own policy if it has one",
    Trouble.KMS: "the secret's KMS key cannot be used: enable it, and allow this role kms:Decrypt on it",
    Trouble.THROTTLED: "throttled: this AWS account makes too many requests",
    Trouble.NETWORK: "no answer from the endpoint: check the network, the VPC endpoint and region_name",
    Trouble.CREDENTIALS: "AWS does not accept our own credentials, or there are none: check the session or the role",
    Trouble.CONFLICT: "the secret is in a state that does not allow this request",
    Trouble.INVALID: "the request is invalid",
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
    """A client for one session, region and role. The first request opens it, even after :meth:`aclose`.

    ``session`` is an ``aioboto3.Session`` or an aiobotocore session, of any version. ``region_name`` and
    ``endpoint_url`` are those of its ``client()``. ``config`` is an ``AioConfig``; by default, timeouts are short and a
    request is tried three times. The role ``role_arn`` is assumed with the session's credentials, and again before the
    role's credentials expire.

    A client may be used on several event loops, and after a fork. Each loop and process gets its own connections.
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
        self._opened: dict[asyncio.AbstractEventLoop, _Opened] = {}

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Have exclusive use of the client until the block ends. :meth:`aclose` waits, too."""
        async with (await self._here()).lock:
            yield

    async def request(self, operation: str, secret_id: str, **parameters: Any) -> dict[str, Any]:
        """Make one request about a secret. Raises :class:`SecretsManagerError`, without botocore's frames."""
        try:
            with _unlogged():
                here = await self._here()
                async with here.opening:
                    if here.client is None:
                        await self._open(here)
                parameters["Name" if operation == "create_secret" else "SecretId"] = secret_id
                answer: dict[str, Any] = await getattr(here.client, operation)(**parameters)
                return answer
        except MissingExtra:
            raise
        except Exception as exc:
            error = _translated(exc, operation, secret_id)
        del parameters  # raised from here, so that the traceback holds no frame with a secret
        raise error

    async def aclose(self) -> None:
        """Close the client. The next request opens a new one."""
        here = await self._here()
        async with here.lock:
            await here.close()

    async def _here(self) -> _Opened:
        """The state for the running loop. Drops the state of loops and processes that are gone."""
        for loop, opened in tuple(self._opened.items()):
            if loop.is_closed() or opened.pid != os.getpid():
                self._opened.pop(loop, None)
                await opened.drop()
        return self._opened.setdefault(asyncio.get_running_loop(), _Opened())

    async def _open(self, here: _Opened) -> None:
        try:
            from aiobotocore.config import AioConfig
        except ImportError:
            raise MissingExtra("AWS Secrets Manager", "aws") from None
        for name in ("botocore.parsers", "botocore.endpoint"):
            logging.getLogger(name).addFilter(_MUTE)  # adding it twice is harmless
        if self._session is None:
            self._session = default_session()
        session = core_of(self._session)
        if self._role_arn:
            session = await self._in_role(session)
        config = AioConfig(**_DEFAULTS)
        if self._config is not None:
            config = config.merge(self._config)
        async with contextlib.AsyncExitStack() as stack:
            client = session.create_client("secretsmanager", config=config, **self._options)
            here.client = await stack.enter_async_context(client)
            here.stack = stack.pop_all()

    async def _in_role(self, session: Any) -> Any:
        """A session that has assumed the role. It fetches the role's credentials when it needs them."""
        from aiobotocore.credentials import AioAssumeRoleCredentialFetcher, AioDeferredRefreshableCredentials
        from aiobotocore.session import get_session
        from botocore.exceptions import NoCredentialsError

        credentials = await session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        region = self._options["region_name"] or session.get_config_variable("region")

        def sts(service: str, **options: Any) -> Any:
            return session.create_client(service, region_name=region, **options)

        fetcher = AioAssumeRoleCredentialFetcher(sts, credentials, self._role_arn)
        assumed = get_session()
        assumed._credentials = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        assumed.set_config_variable("region", region)
        return assumed


class _Opened:
    """A client that is open on one event loop of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = asyncio.Lock()
        self.opening = asyncio.Lock()
        self.stack: contextlib.AsyncExitStack | None = None
        self.client: Any = None

    async def close(self) -> None:
        stack, self.stack, self.client = self.stack, None, None
        if stack is not None:
            await stack.aclose()

    async def drop(self) -> None:
        """Abandon it quietly if it can no longer be closed properly."""
        if self.pid != os.getpid():
            _OF_THE_PARENT.append(self)  # closing or collecting its sockets would disturb the parent
            return
        with contextlib.suppress(Exception):
            await self.close()


_OF_THE_PARENT: list[_Opened] = []


def default_session() -> Any:
    """An aioboto3 session, or an aiobotocore session if aioboto3 is not installed."""
    try:
        import aioboto3
    except ImportError:
        from aiobotocore.session import get_session

        return get_session()
    return aioboto3.Session()


def core_of(session: Any) -> Any:
    """The aiobotocore session: either ``session`` itself, or the one that an aioboto3 session wraps."""
    return getattr(session, "_session", session)


def _translated(exc: Exception, operation: str, secret_id: str) -> SecretsManagerError:
    """Translate a botocore error into one that says what to do.

    For reads, AWS's own message is kept, since it names the role and the secret.
    """
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
        details = exc.response.get("Error", {})
        code, message = details.get("Code", ""), details.get("Message", "")
        if exc.operation_name == "AssumeRole":
            what = f"AssumeRole for secret {secret_id!r}"
        trouble = _CODES.get(code, Trouble.OTHER)
        if trouble is Trouble.CONFLICT and "marked" in message and "delet" in message:
            trouble = Trouble.DELETED
        elif trouble is Trouble.NOT_FOUND and "secret value" in message:
            trouble = Trouble.NO_VALUE
        elif trouble is Trouble.DENIED and "KMS" in message:
            trouble = Trouble.KMS
        if operation in ("put_secret_value", "create_secret"):
            message = ""  # a message about what we sent might quote it
        return SecretsManagerError(f"{what}: {ADVICE[trouble]} ({': '.join(filter(None, (code, message)))})", trouble)
    if isinstance(exc, NoRegionError):
        return SecretsManagerError(f"{what}: set a region with region_name= or AWS_DEFAULT_REGION", Trouble.INVALID)
    if isinstance(exc, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        trouble = Trouble.CREDENTIALS
    elif isinstance(exc, ConnectionError | HTTPClientError | OSError):
        trouble = Trouble.NETWORK
    elif isinstance(exc, BotoCoreError):
        trouble = Trouble.INVALID
    else:
        trouble = Trouble.OTHER
    # The text of these errors may contain what we sent, or a proxy's password, so only the type is shown.
    return SecretsManagerError(f"{what}: {ADVICE[trouble]} ({type(exc).__name__})", trouble)


_unlogged_now: contextvars.ContextVar[bool] = contextvars.ContextVar("aiopqr_unlogged", default=False)


class _Mute(logging.Filter):
    """Drops botocore's DEBUG records about our requests, which would show every request and answer, with secrets."""

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
