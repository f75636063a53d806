"""Keeps a credential pair fresh.

``plan`` says when to fetch, ``refresher`` does it, and ``quarantine`` remembers which credentials are refused.
"""

from .plan import Need
from .quarantine import Attempt, Quarantine
from .refresher import Refresher

__all__ = [
    "Attempt",
    "Need",
    "Quarantine",
    "Refresher",
]
