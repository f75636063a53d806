"""``aiopqr setup``: creates or repairs the two accounts of an application."""

from .command import setup

__all__ = ["setup"]
