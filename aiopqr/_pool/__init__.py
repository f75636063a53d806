"""The pool: hands out connections, resets them on release, and replaces old ones."""

from .connection import Lifetime, lifetime_option
from .create import create_pool
from .pool import AlternatingPool

__all__ = [
    "AlternatingPool",
    "Lifetime",
    "create_pool",
    "lifetime_option",
]
