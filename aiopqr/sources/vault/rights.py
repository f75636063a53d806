"""Asks Vault what a token's policies allow, without trying it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..trouble import Trouble
from .client import VaultClient
from .errors import VaultError


def lacking(client: VaultClient, rights: Mapping[str, str]) -> dict[str, str] | None:
    """The ``rights`` (a capability for each path) that the token lacks, or None if it may not ask. Blocks."""
    try:
        granted: Mapping[str, Any] = client.ask("POST", "sys/capabilities-self", {"paths": list(rights)})["data"]
    except VaultError as exc:
        if exc.trouble is not Trouble.DENIED:
            raise
        return None
    return {path: right for path, right in rights.items() if not {right, "root"} & set(granted.get(path) or ())}


def in_policy(path: str, capability: str) -> str:
    """The HCL that allows ``capability`` on ``path`` in a policy."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'
