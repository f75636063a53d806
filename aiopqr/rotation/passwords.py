"""New passwords: how they are drawn, and how strong they must be."""

from __future__ import annotations

import math
import secrets
import string
from dataclasses import dataclass

from ..credentials import Secret
from ..errors import ConfigurationError

_LEAST_BITS = 80.0


@dataclass(frozen=True, slots=True)
class PasswordRule:
    """How a password is made: ``length`` characters of ``alphabet``, each drawn by :mod:`secrets`.

    The default needs no escaping in a URL, a shell or a passfile, and has 190 bits.

    Raises :class:`ConfigurationError` for an alphabet that clients do not all hash alike (only printable ASCII is
    safe), and for a rule with less than 80 bits.
    """

    length: int = 32
    alphabet: str = string.ascii_letters + string.digits

    def __post_init__(self) -> None:
        if any(not "!" <= char <= "~" for char in self.alphabet):
            raise ConfigurationError("the password alphabet must be printable ASCII without spaces")
        if len(set(self.alphabet)) != len(self.alphabet):
            raise ConfigurationError("the password alphabet must not repeat a character")
        bits = self.length * math.log2(len(self.alphabet)) if self.alphabet else 0.0
        if bits < _LEAST_BITS:
            raise ConfigurationError(f"a password of this rule has {bits:.0f} bits; it needs {_LEAST_BITS:.0f}")

    def generate(self) -> Secret:
        """A new password."""
        return Secret("".join(secrets.choice(self.alphabet) for _ in range(self.length)))
