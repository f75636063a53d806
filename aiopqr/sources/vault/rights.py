"""What a token's policies allow, without trying it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..trouble import Trouble
from .client import VaultClient
from .errors import VaultError


def lacking(client: VaultClient, rights: Mapping[str, str]) -> dict[str, str] | None:
    """Those of ``rights`` (a capability for each path) that the token lacks; None where it may not ask. Blocks."""
    try:
        told: Mapping[str, Any] = client.ask("POST", "sys/capabilities-self", {"paths": list(rights)})["data"]
    except VaultError as exc:
        if exc.trouble is not Trouble.DENIED:
            raise
        return None
    return {path: right for path, right in rights.items() if not {right, "root"} & set(told.get(path) or ())}


def in_policy(path: str, capability: str) -> str:
    """What a policy has to say to allow it (HCL)."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'
