"""The passwords that have proved themselves by SCRAM in this process: none of them is sent as plain text any more.

Only digests are kept, made with a key that is drawn for the process and never leaves it.
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
    """A server and this process have proved to each other, without sending it, that they know the password."""
    digest = _digest(password)
    _digests[digest] = None
    _digests.move_to_end(digest)
    if len(_digests) > _MOST:
        _digests.popitem(last=False)


def is_known(password: Secret) -> bool:
    """Whether the password can be proved without being sent."""
    return _digest(password) in _digests


def _digest(password: Secret) -> bytes:
    return hashlib.blake2b(password.reveal().encode("utf-8", "surrogatepass"), key=_key).digest()
