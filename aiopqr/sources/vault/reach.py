"""How to reach Vault: the options, their defaults from the environment, and the hvac client that they make."""

from __future__ import annotations

import os
from typing import Any, TypedDict

from ...credentials import Secret
from ...errors import MissingExtra
from .auth import Auth


class VaultOptions(TypedDict, total=False):
    """How to reach Vault; see :class:`aiopqr.sources.VaultSource`."""

    url: str | None
    token: str | Secret | None
    auth: Auth | None
    namespace: str | None
    verify: bool | str | None
    cert: tuple[str, str] | None
    timeout: float
    client: Any


def setting(name: str) -> str | None:
    """A setting from the environment, read as the commands ``vault`` and ``bao`` do."""
    return os.environ.get(f"VAULT_{name}") or os.environ.get(f"BAO_{name}")


def usual_verify() -> bool | str:
    """The default for ``verify=``: a CA bundle's path, or whether to verify the server's certificate."""
    if (setting("SKIP_VERIFY") or "").lower() in ("1", "t", "true"):
        return False
    return setting("CACERT") or setting("CAPATH") or True


def usual_cert() -> tuple[str, str] | None:
    """The default for ``cert=``: the paths of the client's certificate and its key."""
    cert, key = setting("CLIENT_CERT"), setting("CLIENT_KEY")
    return (cert, key) if cert and key else None


def new_client(*, verify: bool | str, cert: tuple[str, str] | None, **options: Any) -> Any:
    """Make an hvac client. Raises :class:`MissingExtra` if hvac is not installed."""
    try:
        import hvac
        import requests
    except ImportError:
        raise MissingExtra("Vault", "vault") from None

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            """Follow a standby's redirect, but never from https to http, since the request carries the token."""
            target = super().get_redirect_target(resp)
            return None if target and str(resp.url).startswith("https:") and target.startswith("http:") else target

    session = Session()
    session.verify, session.cert = verify, cert
    return hvac.Client(verify=verify, cert=cert, session=session, **options)
