"""What to do with the previous account when a single-account store names another: a state machine without a clock.

Some stores keep two accounts and show only one (Infisical, Pulumi ESC, AWS's alternating users if only AWSCURRENT is
read). The name flips at each rotation, and the previous account keeps working until its next turn. Other stores drop an
account for good, perhaps because it was compromised. The two look the same until the store returns to an earlier name.
So after the first change the previous account is only a last resort, used while the new one is refused. Once the store
has returned to an earlier name, the two accounts are treated as a pair, and connections alternate.
"""

from __future__ import annotations

from dataclasses import replace

from ..credentials import Credential, CredentialPair, Parity

_NAMES_MAX = 16


class Renaming:
    """The accounts that a single-account store has shown so far. ``keeps`` is the user's ``keep_renamed``."""

    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self._forget()

    def _forget(self) -> None:
        self._names: dict[str, None] = {}  # an ordered set, oldest first
        self._current: Credential | None = None
        self._before: Credential | None = None
        self._is_half = False  # whether the previous account is the other half of a pair
        self._parity = Parity.ODD

    def completed(self, pair: CredentialPair) -> CredentialPair:
        """The pair that the store shows, completed with the account that it showed before if that can help."""
        account = pair.odd or pair.even
        if not (pair.is_single and account and self._keeps and not account.ends_sessions):
            self._forget()
            return pair
        if self._current is None:
            self._parity = Parity.ODD if pair.odd else Parity.EVEN
        elif account.username != self._current.username:
            self._before = self._current
            self._is_half = account.username in self._names
            self._parity = self._parity.other
        self._current = account
        self._names[account.username] = None
        while len(self._names) > _NAMES_MAX:
            del self._names[next(iter(self._names))]
        accounts = {str(self._parity): account, str(self._parity.other): self._before if self._is_half else None}
        return replace(
            pair,
            odd=accounts["odd"],
            even=accounts["even"],
            active=self._parity,
            is_single=not self._is_half,
            last_resort=None if self._is_half else self._before,
        )
