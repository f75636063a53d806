"""Static roles of a database engine: existing accounts whose passwords Vault changes, each on its own schedule.

Each answer contains the number of seconds until the next change, so the next fetch is made just after that.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ...credentials import Credential, CredentialPair, Parity
from ...errors import InvalidSecret
from ..trouble import Trouble
from .client import VaultClient
from .errors import VaultError

logger = logging.getLogger("aiopqr")

_LEAST = 0.5  # seconds to wait after a change is due, since Vault rounds down to whole seconds
_SPREAD_MAX = 10.0
_OVERDUE_MAX = 60.0
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Role:
    """One role, with what was last read of it."""

    name: str
    credential: Credential | None = None
    changed_at: datetime = _NEVER
    warned_of: Trouble | None = None
    overdue: int = 0  # how many reads in a row found a change that was due but had not happened


class StaticRolesReader:
    """Reads one or two roles. Its methods block."""

    def __init__(self, odd: str, even: str | None, mount: str) -> None:
        self._roles = [_Role(name) for name in (odd, even) if name is not None]
        self._mount = mount.strip("/")

    def __repr__(self) -> str:
        names = ", ".join(role.name for role in self._roles)
        return f"static roles, {self._mount}: {names}"

    def read(self, client: VaultClient) -> CredentialPair:
        """The pair that is in Vault now.

        If one of two roles is gone or access to it is denied, the pair contains what was last known of that role.
        """
        problems: list[VaultError] = []
        due = [wait for role in self._roles if (wait := self._read_role(client, role, problems)) is not None]
        if len(problems) == len(self._roles):
            raise problems[0]
        problem = ""
        try:
            pair = self._pair()
        except InvalidSecret as exc:
            problem = str(exc)
        if problem:
            raise VaultError(f"{self} of Vault at {client.url}: {problem}", Trouble.INVALID)
        return replace(pair, refresh_in=min(due))

    def close(self, client: VaultClient) -> None:
        """Does nothing: static roles stay in Vault."""

    def _pair(self) -> CredentialPair:
        odd = self._roles[0]
        if len(self._roles) == 1:
            assert odd.credential is not None
            return CredentialPair.single(odd.credential)
        even = self._roles[1]
        # The password that was changed last will be valid longest.
        active = Parity.EVEN if even.changed_at > odd.changed_at else Parity.ODD
        return CredentialPair(odd.credential, even.credential, active)

    def _read_role(self, client: VaultClient, role: _Role, problems: list[VaultError]) -> float | None:
        """Read a role. Returns the seconds until it should be read again, or None if it could not be read."""
        try:
            answer = client.ask("GET", f"{self._mount}/static-creds/{role.name}")["data"]
        except VaultError as exc:
            if exc.trouble.is_transient or exc.trouble is Trouble.CREDENTIALS:
                raise
            problems.append(exc)
            if role.warned_of is not exc.trouble and len(self._roles) > 1:
                rest = "its last password" if role.credential else "the other role alone"
                logger.warning("%s; continuing with %s", exc, rest)
            role.warned_of = exc.trouble
            return None
        role.credential = Credential(answer["username"], answer["password"])
        role.changed_at = datetime.fromisoformat(answer["last_vault_rotation"])
        role.warned_of = None
        ttl = float(answer["ttl"])
        role.overdue = role.overdue + 1 if ttl <= 0 else 0
        wait: float = max(ttl, 0.0) + min(_LEAST * 2 ** min(max(role.overdue - 1, 0), 16), _OVERDUE_MAX)
        return wait + random.uniform(0.0, min(_SPREAD_MAX, max(ttl, 5.0) / 10))
