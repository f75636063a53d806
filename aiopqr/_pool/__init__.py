"""The pool: who gets a connection, what a release resets, and how old connections are replaced."""

from .connection import Lifetime, lifetime_option
from .pool import AlternatingPool, create_pool

__all__ = [
    "AlternatingPool",
    "Lifetime",
    "create_pool",
    "lifetime_option",
]
