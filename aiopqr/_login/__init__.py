"""One login of one account: asyncpg's connect, with the password proved by us and no more given than is allowed."""

from .asyncpg_login import login
from .keys import KeyCache
from .parsing import Address, Target, missing_file, read_target
from .plain import DRIVER_ERRORS, answered, connect_once, no_frames, place_of
from .scram import verifier
from .trust import Trust, take_trust

__all__ = [
    "DRIVER_ERRORS",
    "Address",
    "KeyCache",
    "Target",
    "Trust",
    "answered",
    "connect_once",
    "login",
    "missing_file",
    "no_frames",
    "place_of",
    "read_target",
    "take_trust",
    "verifier",
]
