"""Where credentials come from. A source is anything with an async ``fetch()`` that returns a :class:`CredentialPair`.

A source may also have:

* ``interval``: the seconds between routine fetches (default 60).
* ``aclose()``: called when its refresher closes or cannot start. A later ``fetch()`` should simply open the source
  again.
* ``check_connect(args, kwargs)``: raises :class:`ConfigurationError` for arguments of ``asyncpg.connect`` that cannot
  work with its credentials.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..credentials import CredentialPair
from ..errors import ConfigurationError
from .file import FileSource
from .function import CallableSource, FixedSource
from .tokens import EntraSource, GoogleSource, TokenSource

if TYPE_CHECKING:
    from .aws.iam import RdsIamSource
    from .aws.source import SecretsManagerSource
    from .vault.source import VaultSource

__all__ = [
    "CallableSource",
    "CredentialSource",
    "Credentials",
    "EntraSource",
    "FileSource",
    "FixedSource",
    "GoogleSource",
    "RdsIamSource",
    "SecretsManagerSource",
    "TokenSource",
    "VaultSource",
    "as_source",
]


@runtime_checkable
class CredentialSource(Protocol):
    """Anything that reads a secret store. Write your own, or use one from this package."""

    async def fetch(self) -> CredentialPair:
        """Return the pair that is in the store now. If this raises, pools keep the pair they have. May be cancelled."""
        ...


Credentials = CredentialSource | CredentialPair | Callable[[], Awaitable[CredentialPair]]


def as_source(credentials: Credentials) -> CredentialSource:
    """Turn anything that ``credentials=`` accepts into a source: a source, an async callable or a fixed pair."""
    if isinstance(credentials, CredentialPair):
        return FixedSource(credentials)
    if isinstance(credentials, CredentialSource):
        return credentials
    if callable(credentials):
        return CallableSource(credentials)
    raise ConfigurationError(
        "credentials must be a source with an async fetch(), an async callable, a CredentialPair or a Refresher, "
        f"not {type(credentials).__name__}"
    )


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept misspelt names

    def __getattr__(name: str) -> Any:
        if name == "SecretsManagerSource":  # imported on demand, because boto is slow to import
            from .aws.source import SecretsManagerSource

            return SecretsManagerSource
        if name == "RdsIamSource":
            from .aws.iam import RdsIamSource

            return RdsIamSource
        if name == "VaultSource":
            from .vault.source import VaultSource

            return VaultSource
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
