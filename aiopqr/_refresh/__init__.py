"""Keeps a credential pair fresh.

``plan`` says when to fetch, ``refresher`` does it, ``quarantine`` remembers which credentials are refused, and
``announcement`` which account is about to change.
"""

from .announcement import Announcement
from .plan import Need
from .quarantine import Attempt, Quarantine
from .refresher import Refresher

__all__ = [
    "Announcement",
    "Attempt",
    "Need",
    "Quarantine",
    "Refresher",
]
