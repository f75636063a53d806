"""``aiopqr check``: can the passwords of a pair be rotated safely?

``facts`` queries the database, and ``findings`` judges the answers: ``roles`` what the accounts may do, ``timing`` when
they were changed. ``vault`` checks the store itself if that is Vault.
"""

from .command import check

__all__ = ["check"]
