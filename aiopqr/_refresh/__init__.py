"""Keeps a credential pair fresh.

``plan`` says when to fetch, ``refresher`` does it, ``quarantine`` remembers which credentials are refused,
``announcement`` which account is about to change, and ``expiry`` until when each is good.
"""

from .announcement import Announcement
from .expiry import Expiry
from .plan import Need
from .quarantine import Attempt, Quarantine
from .refresher import Refresher

__all__ = [
    "Announcement",
    "Attempt",
    "Expiry",
    "Need",
    "Quarantine",
    "Refresher",
]
