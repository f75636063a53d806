"""Remembers the passwords that this process has used with SCRAM, so that they are never sent as plain text.

Only digests are kept.
"""

from __future__ import annotations

from collections import OrderedDict

from ..credentials import Secret

_MOST = 4096

_digests: OrderedDict[bytes, None] = OrderedDict()


def remember(password: Secret) -> None:
    """Remember that a server and this process have proved to each other by SCRAM that they know the password."""
    _digests[password.digest] = None
    _digests.move_to_end(password.digest)
    if len(_digests) > _MOST:
        _digests.popitem(last=False)


def is_known(password: Secret) -> bool:
    """Whether the password has been proved by SCRAM, without being sent."""
    return password.digest in _digests
