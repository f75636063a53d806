"""Where a rotation keeps its secret.

``store`` is the protocol, ``document`` the keys that all stores share, ``whole`` what stores of one document share.
"""

from .file import FileStore
from .store import SecretStore, StoredSecret

__all__ = ["FileStore", "SecretStore", "StoredSecret"]
