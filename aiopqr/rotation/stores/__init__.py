"""The secret stores in which a rotation keeps the pair.

``store`` has the protocol, ``document`` the keys that all stores share, and ``whole`` the base class of stores that
keep the secret as one document.
"""

from .file import FileStore
from .store import SecretStore, StoredSecret

__all__ = ["FileStore", "SecretStore", "StoredSecret"]
