"""``aiopqr rotate``: change the password of one account, so that no service notices."""

from .command import rotate

__all__ = ["rotate"]
