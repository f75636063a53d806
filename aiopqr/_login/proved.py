"""Remembers the passwords that this process has used with SCRAM, so that they are never sent as plain text.

Only digests are kept. Their key is random for each process and never leaves it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

from ..credentials import Secret

_MOST = 4096

_key = secrets.token_bytes(32)
_digests: OrderedDict[bytes, None] = OrderedDict()


def remember(password: Secret) -> None:
    """Remember that a server and this process have proved to each other by SCRAM that they know the password."""
    digest = _digest(password)
    _digests[digest] = None
    _digests.move_to_end(digest)
    if len(_digests) > _MOST:
        _digests.popitem(last=False)


def is_known(password: Secret) -> bool:
    """Whether the password has been proved by SCRAM, without being sent."""
    return _digest(password) in _digests


def _digest(password: Secret) -> bytes:
    return hashlib.blake2b(password.reveal().encode("utf-8", "surrogatepass"), key=_key).digest()
