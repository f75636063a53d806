"""A client for Vault or OpenBao, based on hvac. The first request connects, and later ones keep the login alive.

hvac blocks, so this is plain blocking code that runs in one dedicated thread (:meth:`VaultClient.run`). Nothing else
calls it, so it needs no locks. If a caller gives up, the request still finishes in that thread, before the next begins.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from ..._threads import OwnThread
from ...credentials import Secret
from ...errors import AiopqrError, without_frames
from ...options import positive
from ..trouble import Trouble
from .auth import Auth, TokenFile
from .errors import ADVICE, VaultError, of_answer, of_exception
from .reach import new_client, setting, usual_cert, usual_verify

logger = logging.getLogger("aiopqr")

_T = TypeVar("_T")
_warned: set[str] = set()
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRY_AGAIN = 5.0
_LOOK_UP_AFTER = 4.0, 9.0


@dataclass(slots=True)
class _Life:
    """How long our token is valid. Times are in seconds of the monotonic clock."""

    full: float
    renewable: bool
    renew_at: float
    ends_at: float

    @classmethod
    def of(cls, seconds: float, renewable: bool, now: float, full: float | None = None) -> _Life:
        if seconds <= 0:  # a root token, or a token that something else renews
            return cls(0.0, False, float("inf"), float("inf"))
        return cls(full or seconds, renewable, now + seconds * random.uniform(0.45, 0.6), now + seconds)


class VaultClient:
    """A client of one Vault. The first request opens it, even after :meth:`close`."""

    def __init__(
        self,
        *,
        url: str | None = None,
        token: str | Secret | None = None,
        auth: Auth | None = None,
        namespace: str | None = None,
        verify: bool | str | None = None,
        cert: tuple[str, str] | None = None,
        timeout: float = 5.0,
        client: Any = None,
    ) -> None:
        self._url = url or setting("ADDR") or "http://localhost:8200"
        self._token = Secret(token) if isinstance(token, str) else token
        self._auth = auth
        self._namespace = namespace or setting("NAMESPACE")
        self._verify = usual_verify() if verify is None else verify
        self._cert = cert or usual_cert()
        self._timeout = positive("timeout", timeout)
        self._given = client
        self._thread = OwnThread("aiopqr-vault")
        self._hvac: Any = None
        self._pid = 0
        self._life: _Life | None = None
        self._look_up_at = 0.0
        self._throttled_until = 0.0

    def __repr__(self) -> str:
        return f"<VaultClient of {self.url}>"

    @property
    def url(self) -> str:
        """Vault's address, without the user and password that it may contain."""
        base = self._given.adapter.base_uri if self._given is not None else self._url
        parts = urlsplit(base)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    @property
    def due_in(self) -> float:
        """Seconds until the token should be renewed. The next fetch after that renews it."""
        due = self._life.renew_at if self._life is not None else self._look_up_at
        return max(due - time.monotonic(), 0.0)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run blocking work in the client's thread. Frames that held secrets are removed from any error."""
        error: AiopqrError
        try:
            return await self._thread.run(work)
        except AiopqrError as exc:
            error = without_frames(exc)
        except Exception as exc:  # an answer lacks something that it should contain
            error = VaultError(
                f"Vault at {self.url} sent an answer that makes no sense ({type(exc).__name__})", Trouble.OTHER
            )
        raise error

    async def run_logged_in(self, work: Callable[[], _T]) -> _T:
        """Like :meth:`run`, but first renews the token or logs in again, if that is due."""

        def logged_in() -> _T:
            self._keep_login()
            return work()

        return await self.run(logged_in)

    def _keep_login(self) -> None:
        now = time.monotonic()
        self._client()
        if isinstance(self._auth, TokenFile) or (self._auth and self._life is None):
            self._log_in()
        elif self._life is None:
            # Wait before looking up a given token's lifetime, so that a starting fleet makes fewer requests.
            self._look_up_at = self._look_up_at or now + random.uniform(*_LOOK_UP_AFTER)
            if now >= self._look_up_at:
                self._look_up()
        elif now >= self._life.renew_at:
            self._renew(self._life, now)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make a request and return Vault's JSON. Logs in again if the token is refused. Raises :class:`VaultError`."""
        try:
            return self._send(method, path, body)
        except VaultError as exc:
            error = self._diagnosed(exc)
        if error.trouble is Trouble.CREDENTIALS and self._auth is not None:
            self._log_in()
            return self._send(method, path, body)
        raise error

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        client, self._hvac, self._life, self._look_up_at = self._hvac, None, None, 0.0
        if client is not None and client is not self._given and self._pid == os.getpid():
            client.adapter.close()

    def _client(self) -> Any:
        if self._hvac is not None and self._pid == os.getpid():  # a forked child must not use its parent's connections
            return self._hvac
        if self._given is not None:
            client = self._given
        else:
            client = new_client(
                url=self._url,
                token=self._token.reveal() if self._token else None,
                namespace=self._namespace,
                verify=self._verify,
                cert=self._cert,
                timeout=self._timeout,
            )
        if (address := self.url).startswith("http://") and urlsplit(address).hostname not in _LOOPBACK:
            if address not in _warned:
                logger.warning("Vault at %s: tokens and passwords cross the network unencrypted; use https", address)
            _warned.add(address)
        self._hvac, self._pid, self._life = client, os.getpid(), None
        return client

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        what = f"{method} {path} of Vault at {self.url}"
        left = self._throttled_until - time.monotonic()
        if left > 0:
            problem = f"{what}: {ADVICE[Trouble.THROTTLED]}; Vault allows the next request in {left:.0f} s"
            raise VaultError(problem, Trouble.THROTTLED, retry_after=left)
        client = self._client()
        try:
            answer = client.adapter.request(method, f"/v1/{quote(path)}", raise_exception=False, json=body)
        except Exception as exc:
            error = of_exception(what, exc)
        else:
            if isinstance(answer, dict):
                return answer
            content = _json(answer)
            if answer.ok and (content is not None or not answer.content):
                return content or {}
            retry_after = answer.headers.get("Retry-After")
            error = of_answer(what, answer.status_code, content, retry_after, quoted=body is None)
            self._throttled_until = time.monotonic() + (error.retry_after or 0.0)
        raise error

    def _diagnosed(self, error: VaultError) -> VaultError:
        """``error``, or a CREDENTIALS error if the token is bad: Vault says "permission denied" in that case too."""
        if error.trouble is not Trouble.DENIED or error.by_policy:
            return error
        try:
            if self._client().token:
                self._send("GET", "auth/token/lookup-self")
                return error
        except VaultError as exc:
            if exc.trouble is not Trouble.DENIED or exc.by_policy:
                return error
        return VaultError(str(error).replace(ADVICE[Trouble.DENIED], ADVICE[Trouble.CREDENTIALS]), Trouble.CREDENTIALS)

    def _log_in(self) -> None:
        assert self._auth is not None
        client, now = self._client(), time.monotonic()
        what = f"login to Vault at {self.url} by {getattr(self._auth, '__name__', type(self._auth).__name__)}"
        try:
            auth = self._auth(client)["auth"]
            client.token = auth["client_token"]
            self._life = _Life.of(float(auth.get("lease_duration") or 0), bool(auth.get("renewable")), now)
            return
        except Exception as exc:
            error = of_exception(what, exc)
        raise error

    def _look_up(self) -> None:
        """Look up how long the token that we were given is valid. If policy forbids that, use the token as it is."""
        now, life = time.monotonic(), _Life.of(0.0, False, 0.0)
        if self._client().token:
            try:
                data = self._send("GET", "auth/token/lookup-self")["data"]
                life = _Life.of(float(data.get("ttl") or 0), bool(data.get("renewable")), now)
            except VaultError as exc:
                if exc.trouble.is_transient:
                    return
        self._life = life

    def _renew(self, life: _Life, now: float) -> None:
        """Renew the token. If that is impossible, log in again or, without ``auth``, log a single warning."""
        error: VaultError | None = None
        if life.renewable:
            try:
                auth = self._send("POST", "auth/token/renew-self", {})["auth"]
                seconds = float(auth.get("lease_duration") or 0)
                # Near the maximum TTL, renewals get shorter and shorter. Only a new login helps then.
                renewable = bool(auth.get("renewable")) and not (self._auth and seconds < life.full / 2)
                self._life = _Life.of(seconds, renewable, now, life.full)
                return
            except VaultError as exc:
                error = exc
        if self._auth is not None:
            try:
                self._log_in()
                return
            except VaultError as exc:
                error = exc
                if now >= life.ends_at:
                    raise
        if error is not None and error.trouble.is_transient:
            life.renew_at = now + random.uniform(0.5, 1.0) * _TRY_AGAIN
            return
        life.renew_at = float("inf") if self._auth is None else now + _TRY_AGAIN
        why = "it is not renewable" if error is None else str(error)
        logger.warning(
            "the token for Vault at %s expires in %.0f s and cannot be renewed (%s); pass auth= so that aiopqr can log "
            "in again",
            self.url,
            max(life.ends_at - now, 0.0),
            why,
        )


def _json(answer: Any) -> dict[str, Any] | None:
    try:
        content = answer.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
