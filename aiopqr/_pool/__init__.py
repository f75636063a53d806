"""The pool: who gets a connection, what a release resets, and how old connections are replaced."""

from .connection import Lifetime, lifetime_option
from .create import create_pool
from .pool import AlternatingPool

__all__ = [
    "AlternatingPool",
    "Lifetime",
    "create_pool",
    "lifetime_option",
]
