"""How new passwords are generated, and how strong they must be."""

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
    """How to generate a password: ``length`` random characters of ``alphabet``.

    The default has 190 bits, and needs no escaping in a URL, a shell or a passfile.

    Raises :class:`ConfigurationError` if the alphabet is not printable ASCII (clients do not hash other characters in
    the same way), or if passwords would have less than 80 bits.
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
        """Generate a new password."""
        return Secret("".join(secrets.choice(self.alphabet) for _ in range(self.length)))
