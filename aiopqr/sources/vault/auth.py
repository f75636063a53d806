"""Ways to log in to Vault: each is a callable that gets an ``hvac.Client``, in a thread, and returns Vault's answer.

Any such function works as ``auth=``, for example ``lambda client: client.auth.aws.iam_login(...)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...credentials import Secret

Auth = Callable[[Any], Mapping[str, Any]]

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


class AppRole:
    """Log in by AppRole. Pass the ``secret_id``, or the path of a file that contains it and is read at each login."""

    def __init__(
        self,
        role_id: str,
        secret_id: str | Secret | None = None,
        *,
        secret_id_file: str | os.PathLike[str] | None = None,
        mount: str = "approle",
    ) -> None:
        self._role_id = role_id
        self._secret_id = Secret(secret_id) if isinstance(secret_id, str) else secret_id
        self._file = secret_id_file
        self._mount = mount

    def __repr__(self) -> str:
        return f"AppRole({self._role_id!r}, mount={self._mount!r})"

    def __call__(self, client: Any) -> Mapping[str, Any]:
        secret_id = self._secret_id.reveal() if self._secret_id else None
        if self._file is not None:
            secret_id = _read(self._file)
        answer: Mapping[str, Any] = client.auth.approle.login(self._role_id, secret_id, mount_point=self._mount)
        return answer


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Log in with the pod's service account token. It is read at each login, since Kubernetes replaces it."""

    role: str
    mount: str = "kubernetes"
    token_file: str | os.PathLike[str] = _SERVICE_ACCOUNT

    def __call__(self, client: Any) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = client.auth.kubernetes.login(
            self.role, _read(self.token_file), mount_point=self.mount
        )
        return answer


@dataclass(frozen=True, slots=True)
class JWT:
    """Log in with a JSON Web Token from a file (CI systems, SPIFFE, cloud identities). It is read at each login."""

    role: str
    token_file: str | os.PathLike[str]
    mount: str = "jwt"

    def __call__(self, client: Any) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = client.auth.jwt.jwt_login(self.role, _read(self.token_file), path=self.mount)
        return answer


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Use the token in a file that something else keeps fresh, such as Vault Agent. It is read for each fetch."""

    path: str | os.PathLike[str]

    def __call__(self, client: Any) -> Mapping[str, Any]:
        return {"auth": {"client_token": _read(self.path), "lease_duration": 0, "renewable": False}}


def _read(path: str | os.PathLike[str]) -> str:
    return Path(path).read_text("utf-8").strip()
