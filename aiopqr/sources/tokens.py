"""Short-lived tokens used as passwords: from any async callable, from Entra ID, and from Google Cloud.

The database checks a token only at login, so connections outlive it. The refresher fetches the next token after two
thirds of the current one's lifetime, once for all pools that share the refresher. A token is sent to the server as
plain text, so require TLS: ``sslmode=verify-full``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from .._threads import in_thread
from ..credentials import Credential, CredentialPair
from ..errors import ConfigurationError, InvalidSecret, MissingExtra, SourceError

ENTRA_SCOPE = "https://ossrdbms-aad.database.windows.net/.default"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/sqlservice.login"


class TokenSource:
    """The account ``username``, whose password is the token that ``fetch`` returns.

    ``fetch`` is an async function without arguments that returns the token and its expiry as an aware datetime:
    ``("eyJ0…", datetime(…, tzinfo=UTC))``. If it raises, that is reported as an event, and pools keep the current
    token.
    """

    interval = 0.0  # no polling, since the expiry is known

    def __init__(self, username: str, fetch: Callable[[], Awaitable[tuple[str, datetime]]]) -> None:
        if not isinstance(username, str) or not username:
            raise ConfigurationError("username must be the name of the database account")
        self._username = username
        self._fetch = fetch

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._username!r})"

    async def fetch(self) -> CredentialPair:
        """Fetch a fresh token and return the account with it as its password."""
        answer: Any = self._fetch()
        if not inspect.isawaitable(answer):
            del answer  # here and below: a traceback must not hold a token
            raise ConfigurationError("the callable of a TokenSource must be an async function")
        account = self._account(await answer)
        del answer  # a future shows its result
        if isinstance(account, str):
            raise SourceError(account)
        return CredentialPair.single(account)

    def _account(self, found: object) -> Credential | str:
        """The account with its token, or what is wrong with it. Not raised from here, because this frame holds it."""
        match found:
            case (str(token), datetime() as expires_at) if expires_at.utcoffset() is not None:
                try:
                    return Credential(self._username, token, expires_at)
                except InvalidSecret as exc:
                    return f"the account of {self!r} cannot be used: {exc}"
        return "the callable of a TokenSource must return a token and its expiry as an aware datetime"


class EntraSource(TokenSource):
    """An Entra ID (Azure AD) identity. ``credential`` is one of ``azure.identity.aio``, with an async ``get_token``.

    ``username`` is the identity's Postgres role. The default ``scope`` is that of Azure Database for PostgreSQL.
    """

    def __init__(self, username: str, credential: Any, *, scope: str = ENTRA_SCOPE) -> None:
        async def fetch() -> tuple[str, datetime]:
            answer = await credential.get_token(scope)
            return answer.token, datetime.fromtimestamp(answer.expires_on, UTC)

        super().__init__(username, fetch)


class GoogleSource(TokenSource):
    """A Cloud SQL IAM account. ``credentials`` are google-auth's; by default they come from the environment.

    ``username`` is the Postgres role: a user's e-mail address, or a service account's without
    ``.gserviceaccount.com``. google-auth blocks, so it runs in one of aiopqr's threads.
    """

    def __init__(self, username: str, credentials: Any = None) -> None:
        self._credentials = credentials
        super().__init__(username, self._refreshed)

    async def _refreshed(self) -> tuple[str, datetime]:
        return await in_thread(self._refresh)

    def _refresh(self) -> tuple[str, datetime]:
        try:
            import google.auth
            from google.auth.transport.requests import Request
        except ImportError:
            raise MissingExtra("Cloud SQL IAM", "google") from None
        if self._credentials is None:
            self._credentials, _ = google.auth.default(scopes=[GOOGLE_SCOPE])
        self._credentials.refresh(Request())
        return self._credentials.token, self._credentials.expiry.replace(tzinfo=UTC)  # google-auth's is naive UTC
