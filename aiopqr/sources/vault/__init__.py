"""Vault and OpenBao as a source, and the ways to log in to them.

``source`` is the public class; ``static_roles``, ``kv`` and ``leases`` read what lies in Vault; ``client`` asks
over the connection that ``reach`` sets up, ``auth`` logs in, and ``errors`` says what went wrong.
"""

from .auth import JWT, AppRole, Kubernetes, TokenFile
from .errors import VaultError
from .source import VaultSource

__all__ = ["JWT", "AppRole", "Kubernetes", "TokenFile", "VaultError", "VaultSource"]
