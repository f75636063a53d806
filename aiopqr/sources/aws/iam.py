"""RDS IAM authentication: the password is a locally signed URL, valid for at most fifteen minutes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from ...credentials import CredentialPair, Endpoint
from ...errors import ConfigurationError, MissingExtra, SourceError
from ...options import service_section
from ..tokens import TokenSource

_GOOD_FOR = 900
_ENCRYPTED = ("require", "verify-ca", "verify-full")


class RdsIamSource(TokenSource):
    """The account ``username`` of an RDS or Aurora instance, which logs in with a signed token.

    A token is valid for one ``host`` and ``port``. Pass those of the instance, even if you connect through a tunnel.
    The pool connects there unless its own arguments name a host. ``session`` is an ``aioboto3.Session`` or an
    aiobotocore session. The token is signed with its credentials, for its region or for ``region_name``; nothing is
    sent to AWS.

    RDS requires TLS, and the token is sent through it as plain text. Use ``sslmode=verify-full`` and RDS's root
    certificates.
    """

    def __init__(
        self, username: str, host: str, port: int = 5432, *, region_name: str | None = None, session: Any = None
    ) -> None:
        if not isinstance(host, str) or not host or "," in host:
            raise ConfigurationError("host must name exactly one instance; use one source for each host")
        super().__init__(username, self._sign)
        self._endpoint = Endpoint(host, port)
        self._region = region_name
        self._session = session

    def __repr__(self) -> str:
        return f"RdsIamSource({self._username!r}, {self._endpoint.host!r})"

    async def fetch(self) -> CredentialPair:
        pair = await super().fetch()
        assert pair.odd is not None
        return CredentialPair.single(pair.odd, endpoint=self._endpoint)

    def check_connect(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise :class:`ConfigurationError` for arguments of a connect that cannot work. Connectors call this."""
        dsn = args[0] if args else kwargs.get("dsn")
        parts = urlsplit(dsn) if isinstance(dsn, str) else urlsplit("")
        query = dict(parse_qsl(parts.query))
        service, environment = service_section(query, kwargs), os.environ
        host = kwargs.get("host") or parts.netloc or query.get("host") or service.get("host")
        host = host or environment.get("PGHOST", "")
        if "," in host if isinstance(host, str) else len(host) > 1:
            raise ConfigurationError(
                "an RDS IAM token is good for one host only: use one source and one pool for each host"
            )
        ssl = kwargs.get("ssl")
        mode = ssl
        if ssl is None:
            mode = query.get("sslmode") or service.get("sslmode") or environment.get("PGSSLMODE")
        if mode is None or mode is False or (isinstance(mode, str) and mode not in _ENCRYPTED):
            raise ConfigurationError(
                "RDS IAM needs TLS, since the token is sent as plain text: pass sslmode=verify-full and sslrootcert=, "
                "or an SSLContext as ssl="
            )

    async def _sign(self) -> tuple[str, datetime]:
        try:
            from aiobotocore.session import get_session
            from aiobotocore.signers import AioRequestSigner
            from botocore.model import ServiceId
        except ImportError:
            raise MissingExtra("RDS IAM", "aws") from None
        if self._session is None:
            self._session = get_session()
        session = getattr(self._session, "_session", self._session)  # an aioboto3 session wraps an aiobotocore one
        region = self._region or session.get_config_variable("region")
        if not region:
            raise SourceError("RDS IAM: set a region with region_name= or AWS_DEFAULT_REGION")
        credentials = await session.get_credentials()
        if credentials is None:
            raise SourceError("RDS IAM: no AWS credentials to sign with: check the session or the role")
        host, port = self._endpoint.host, self._endpoint.port
        events = session.get_component("event_emitter")
        signer = AioRequestSigner(ServiceId("RDS"), region, "rds-db", "v4", credentials, events)
        url = f"https://{host}:{port}/?Action=connect&DBUser={quote(self._username, safe='')}"
        signed_at = datetime.now(UTC)
        signed = await signer.generate_presigned_url(
            {"method": "GET", "url": url, "body": {}, "headers": {}, "context": {}},
            operation_name="connect",
            region_name=region,
            expires_in=_GOOD_FOR,
            signing_name="rds-db",
        )
        ends_at = signed_at + timedelta(seconds=_GOOD_FOR)
        # A token is good for no longer than the credentials that signed it. Only botocore's attribute says how long.
        return signed.removeprefix("https://"), min(ends_at, getattr(credentials, "_expiry_time", None) or ends_at)
