"""What went wrong with a request to Vault: HTTP status and text, or an exception, in; a :class:`VaultError` out."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from ...errors import SourceError
from ..trouble import Trouble

RETRY_MAX = 300.0


class VaultError(SourceError):
    """A request to Vault failed. ``trouble`` is the kind of failure. The text is safe to log.

    ``retry_after`` is the number of seconds after which a throttled request may be made again, where Vault says it.
    ``by_policy`` says for sure that a policy denied the request; without it, the token may be at fault.
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
    "use auth= to log in again by itself",
    Trouble.SEALED: "Vault is sealed or not initialised: an operator has to unseal it",
    Trouble.STANDBY: "this is a standby node, and it knows no active one: wait for the election, or check the cluster",
    Trouble.THROTTLED: "throttled: one of Vault's rate limit quotas is used up",
    Trouble.NETWORK: "no answer: check the address (url= or VAULT_ADDR) and the network",
    Trouble.TLS: "the TLS connection failed: check verify= (VAULT_CACERT), cert= and the server's name",
    Trouble.CONFLICT: "the secret has changed in the meantime",
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
# What a status says only together with a text.
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
    """The error that an answer stands for. ``answer`` is its JSON, None where it is not Vault's.

    ``quoted`` says that Vault's own words may be shown: those about what we have sent might repeat it.
    """
    said = [str(text) for text in (answer or {}).get("errors") or ()]
    told = "; ".join(" ".join(text.replace("1 error occurred:", "").split()).lstrip("* ") for text in said)
    trouble = next((kind for code, text, kind in _BY_TEXT if code == status and text in told), None)
    trouble = trouble or _BY_STATUS.get(status, Trouble.OTHER)
    if trouble is Trouble.SEALED and answer is None:
        trouble = Trouble.NETWORK  # a load balancer without a healthy node
    if trouble is Trouble.NOT_FOUND and _is_deleted(answer):
        trouble = Trouble.DELETED
    seconds = min(float(retry_after), RETRY_MAX) if retry_after and retry_after.isdecimal() else None
    details = f"HTTP {status}, {told}" if told and quoted else f"HTTP {status}"
    text = f"{what}: {ADVICE[trouble]} ({details})"
    if seconds is not None:
        text += f"; Vault allows the next request in {seconds:.0f} s"
    error = VaultError(text, trouble, retry_after=seconds)
    error.by_policy = any("error occurred" in text for text in said)  # a bad token is not reported as a list of errors
    return error


def of_exception(what: str, exc: Exception) -> VaultError:
    """The error for what hvac, requests, or a login's own code raised. Their texts may hold what was sent."""
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
        # A login's own file; or, as requests calls it, the CA bundle that verify= names.
        return VaultError(f"{what}: a file cannot be read: {_named(exc)}", Trouble.INVALID)
    elif isinstance(exc, requests.exceptions.ConnectionError | requests.exceptions.Timeout | OSError):
        is_request = isinstance(exc, requests.exceptions.RequestException)
        if is_request and not isinstance(exc, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
            trouble = Trouble.INVALID  # a URL that makes no sense, too many redirects
        elif not is_request and "TLS" in str(exc) and "invalid path" in str(exc):
            trouble = Trouble.TLS  # as requests says it of a file that verify= or cert= names
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
