"""How Vault is reached: the options for it, and what the environment says where they are not given."""

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
    """What the environment says, as the commands ``vault`` and ``bao`` read it."""
    return os.environ.get(f"VAULT_{name}") or os.environ.get(f"BAO_{name}")


def usual_verify() -> bool | str:
    """Whether, or with which authorities, the server's certificate is verified."""
    if (setting("SKIP_VERIFY") or "").lower() in ("1", "t", "true"):
        return False
    return setting("CACERT") or setting("CAPATH") or True


def usual_cert() -> tuple[str, str] | None:
    """The client's own certificate and its key, as files."""
    cert, key = setting("CLIENT_CERT"), setting("CLIENT_KEY")
    return (cert, key) if cert and key else None


def new_client(*, verify: bool | str, cert: tuple[str, str] | None, **options: Any) -> Any:
    """hvac's client. Raises :class:`MissingExtra` where there is no hvac."""
    try:
        import hvac
        import requests
    except ImportError:
        raise MissingExtra("Vault", "vault") from None

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            """Where a standby sends us; never from https to http, since the token goes along."""
            target = super().get_redirect_target(resp)
            return None if target and str(resp.url).startswith("https:") and target.startswith("http:") else target

    session = Session()
    session.verify, session.cert = verify, cert
    return hvac.Client(verify=verify, cert=cert, session=session, **options)
