"""Vault and OpenBao as a source, and the ways to log in to them.

``source`` has the public class. ``static_roles``, ``kv`` and ``leases`` read the credentials. ``client`` makes the
requests, over the connection that ``reach`` sets up. ``auth`` logs in, and ``errors`` explains what went wrong.
"""

from .auth import JWT, AppRole, Kubernetes, TokenFile
from .errors import VaultError
from .source import VaultSource

__all__ = ["JWT", "AppRole", "Kubernetes", "TokenFile", "VaultError", "VaultSource"]
