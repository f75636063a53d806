"""A password that cannot be printed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import NoReturn

from ..errors import InvalidSecret

_MASK = "**********"
_KEY = os.urandom(32)  # never leaves the process


class Secret:
    """A password that cannot be printed: ``repr``, ``str`` and ``format`` show a mask; :meth:`reveal` returns the text.

    Two secrets are equal if their texts are. A secret cannot be pickled, so it cannot end up in a cache or a queue. No
    attribute holds its text, so serializers and inspectors cannot find it. ``digest`` distinguishes secrets without
    revealing them. It differs in each process.
    """

    __slots__ = ("_reveal", "digest")
    _reveal: Callable[[], str]
    digest: bytes

    def __init__(self, content: str) -> None:
        if not isinstance(content, str):
            raise InvalidSecret("a password must be text")
        self._reveal = lambda: content
        text = content.encode("utf-8", "surrogatepass")
        self.digest = hashlib.blake2b(text, key=_KEY, digest_size=16).digest()

    def reveal(self) -> str:
        """Return the password itself. Call this only where you log in with it."""
        return self._reveal()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __repr__(self) -> str:
        return f"Secret({_MASK!r})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to show")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self
