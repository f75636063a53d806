"""``aiopqr rotate``: changes the password of one account without any service noticing."""

from .command import rotate

__all__ = ["rotate"]
