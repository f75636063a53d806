"""One login of one account: asyncpg's connect, with the password proved by us (SCRAM) where that is possible."""

from .asyncpg_login import login
from .keys import KeyCache
from .scram import verifier

__all__ = [
    "KeyCache",
    "login",
    "verifier",
]
