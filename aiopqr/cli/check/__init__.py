"""``aiopqr check``: may a pair be rotated safely?

``facts`` asks the servers, and ``findings`` judges what they say: ``roles`` what the accounts may do, ``timing`` when
they were changed. ``vault`` looks at the store itself where that is Vault.
"""

from .command import check

__all__ = ["check"]
