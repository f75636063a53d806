"""Turns what went wrong with a request to Vault (an HTTP answer or an exception) into a :class:`VaultError`."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from ...errors import SourceError
from ..trouble import Trouble

RETRY_MAX = 300.0


class VaultError(SourceError):
    """A request to Vault failed. ``trouble`` is the kind of failure. The text is safe to log.

    ``retry_after`` is the number of seconds to wait after a throttled request, or None if Vault does not say.
    ``by_policy`` is True if a policy certainly denied the request; otherwise the token may be bad.
    """

    def __init__(self, message: str, trouble: Trouble, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.retry_after = retry_after
        self.by_policy = False


ADVICE = {
    Trouble.NOT_FOUND: "there is nothing at this path: check the name, mount= and namespace=",
    Trouble.DELETED: "the newest version is deleted: restore it with `vault kv undelete`",
    Trouble.DENIED: "permission denied: the token is valid, but its policies do not allow this",
    Trouble.CREDENTIALS: "Vault does not accept our token: it has expired or was revoked, or there is none; "
    "pass auth= so that aiopqr logs in again by itself",
    Trouble.SEALED: "Vault is sealed or not initialised: an operator has to unseal it",
    Trouble.STANDBY: "this is a standby node without an active node: wait for the election, or check the cluster",
    Trouble.THROTTLED: "throttled: one of Vault's rate limit quotas is used up",
    Trouble.NETWORK: "no answer: check the address (url= or VAULT_ADDR) and the network",
    Trouble.TLS: "the TLS connection failed: check verify= (VAULT_CACERT), cert= and the server's name",
    Trouble.CONFLICT: "the secret was changed in the meantime",
    Trouble.INVALID: "Vault refused the request as invalid",
    Trouble.OTHER: "Vault failed",
}

_BY_STATUS = {
    400: Trouble.INVALID,
    401: Trouble.CREDENTIALS,
    403: Trouble.DENIED,
    404: Trouble.NOT_FOUND,
    405: Trouble.INVALID,
    429: Trouble.THROTTLED,
    472: Trouble.STANDBY,
    473: Trouble.STANDBY,
    501: Trouble.SEALED,
    503: Trouble.SEALED,
    504: Trouble.NETWORK,
}
# Kinds that can only be recognised by the status and the text together.
_BY_TEXT = (
    (400, "check-and-set", Trouble.CONFLICT),
    (400, "unknown role", Trouble.NOT_FOUND),
    (400, "lease not found", Trouble.NOT_FOUND),
    (400, "invalid lease", Trouble.NOT_FOUND),
    (400, "invalid role or secret ID", Trouble.CREDENTIALS),
    (403, "invalid token", Trouble.CREDENTIALS),
    (403, "bad token", Trouble.CREDENTIALS),
    (403, "missing client token", Trouble.CREDENTIALS),
    (500, "node not active", Trouble.STANDBY),
    (500, "node not found", Trouble.STANDBY),
)


def of_answer(
    what: str, status: int, answer: Mapping[str, Any] | None, retry_after: str | None = None, *, quoted: bool = True
) -> VaultError:
    """The error for an HTTP answer. ``answer`` is its JSON, or None if the answer is not Vault's.

    With ``quoted``, Vault's own message is shown. Do not show it for requests that send secrets: it may repeat them.
    """
    messages = [str(text) for text in (answer or {}).get("errors") or ()]
    message = "; ".join(" ".join(text.replace("1 error occurred:", "").split()).lstrip("* ") for text in messages)
    trouble = next((kind for code, text, kind in _BY_TEXT if code == status and text in message), None)
    trouble = trouble or _BY_STATUS.get(status, Trouble.OTHER)
    if trouble is Trouble.SEALED and answer is None:
        trouble = Trouble.NETWORK  # from a load balancer without a healthy node
    if trouble is Trouble.NOT_FOUND and _is_deleted(answer):
        trouble = Trouble.DELETED
    seconds = min(float(retry_after), RETRY_MAX) if retry_after and retry_after.isdecimal() else None
    details = f"HTTP {status}, {message}" if message and quoted else f"HTTP {status}"
    text = f"{what}: {ADVICE[trouble]} ({details})"
    if seconds is not None:
        text += f"; Vault allows the next request in {seconds:.0f} s"
    error = VaultError(text, trouble, retry_after=seconds)
    # Vault reports a policy's denial as a list of errors, and a bad token as a plain "permission denied".
    error.by_policy = any("error occurred" in text for text in messages)
    return error


def of_exception(what: str, exc: Exception) -> VaultError:
    """The error for an exception from hvac, requests or a login function, without its text, which may hold secrets."""
    import hvac.exceptions
    import requests.exceptions

    if isinstance(exc, VaultError):
        return exc
    if isinstance(exc, hvac.exceptions.VaultError):
        statuses = (status.value for status in http.HTTPStatus)
        kinds = (hvac.exceptions.VaultError.from_status(status) for status in statuses)
        status = next((s.value for s, k in zip(http.HTTPStatus, kinds, strict=True) if type(k) is type(exc)), 500)
        return of_answer(what, status, {"errors": exc.errors or ()}, quoted=False)
    if isinstance(exc, requests.exceptions.SSLError):
        trouble = Trouble.TLS
    elif isinstance(exc, FileNotFoundError | PermissionError | UnicodeDecodeError):
        # A file that a login function reads, or the CA bundle that verify= names.
        return VaultError(f"{what}: a file cannot be read: {_named(exc)}", Trouble.INVALID)
    elif isinstance(exc, requests.exceptions.ConnectionError | requests.exceptions.Timeout | OSError):
        is_request = isinstance(exc, requests.exceptions.RequestException)
        if is_request and not isinstance(exc, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
            trouble = Trouble.INVALID  # an invalid URL, or too many redirects
        elif not is_request and "TLS" in str(exc) and "invalid path" in str(exc):
            trouble = Trouble.TLS  # requests' error for a missing file that verify= or cert= names
        else:
            trouble = Trouble.NETWORK
    else:
        trouble = Trouble.OTHER
    return VaultError(f"{what}: {ADVICE[trouble]} ({type(exc).__name__})", trouble)


def _named(exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"{exc.filename}: {exc.strerror}"
    return "not valid UTF-8"


def _is_deleted(answer: Mapping[str, Any] | None) -> bool:
    metadata = ((answer or {}).get("data") or {}).get("metadata") or {}
    return bool(metadata.get("deletion_time") or metadata.get("destroyed"))
