"""Keeps a credential pair fresh.

``plan`` decides when to fetch, ``feed`` fetches, and ``refresher`` has the public class. ``quarantine`` remembers which
credentials are refused, ``announcement`` which account is about to change, ``expiry`` when each credential expires, and
``renaming`` which account a store named before.
"""

from .announcement import Announcement
from .expiry import Expiry
from .feed import Feed
from .plan import Need
from .quarantine import Attempt, Quarantine
from .refresher import Refresher, feed_of

__all__ = [
    "Announcement",
    "Attempt",
    "Expiry",
    "Feed",
    "Need",
    "Quarantine",
    "Refresher",
    "feed_of",
]
