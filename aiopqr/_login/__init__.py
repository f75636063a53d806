"""One login of one account: asyncpg's connect, with the password proved by us (SCRAM) where that is possible."""

from .asyncpg_login import login
from .keys import KeyCache
from .parsing import Address, Target, missing_file, read_target
from .scram import verifier

__all__ = [
    "Address",
    "KeyCache",
    "Target",
    "login",
    "missing_file",
    "read_target",
    "verifier",
]
