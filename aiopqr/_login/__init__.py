"""One login of one account: asyncpg's connect, with the password proved by us and no more given than is allowed."""

from .asyncpg_login import login
from .keys import KeyCache
from .parsing import Address, Target, missing_file, read_target
from .scram import verifier
from .trust import Trust, take_trust

__all__ = [
    "Address",
    "KeyCache",
    "Target",
    "Trust",
    "login",
    "missing_file",
    "read_target",
    "take_trust",
    "verifier",
]
