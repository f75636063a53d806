"""One login with one account, by asyncpg's connect. We answer the server, and never send more than is allowed."""

from .asyncpg_login import OWN_CONNECT, disown, login
from .keys import KeyCache
from .names import addresses_of
from .parsing import Address, Target, missing_file, read_target, without_dsn
from .plain import DRIVER_ERRORS, answered, connect_once, no_frames, place_of
from .scram import verifier

__all__ = [
    "DRIVER_ERRORS",
    "OWN_CONNECT",
    "Address",
    "KeyCache",
    "Target",
    "addresses_of",
    "answered",
    "connect_once",
    "disown",
    "login",
    "missing_file",
    "no_frames",
    "place_of",
    "read_target",
    "verifier",
    "without_dsn",
]
