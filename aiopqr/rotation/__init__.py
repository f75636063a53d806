"""The other half: changing the passwords of a pair so that nobody is ever locked out.

``stores`` says what a secret store must do, and does it for a JSON file and for AWS Secrets Manager.
``plan`` decides and ``gates`` say what speaks against it, both pure; ``database`` asks and alters Postgres; ``rotator``
puts them in order.
"""

from .errors import PathDown, RotationFailed, RotationRefused, RotationUndone, StoreConflict, StoreError
from .gates import Gate, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan
from .rotator import Rotation, Rotator, Step
from .stores import FileStore, SecretStore, StoredSecret

__all__ = [
    "Action",
    "FileStore",
    "Gate",
    "Objection",
    "PasswordRule",
    "PathDown",
    "Plan",
    "Rotation",
    "RotationFailed",
    "RotationRefused",
    "RotationUndone",
    "Rotator",
    "Rules",
    "SecretStore",
    "Step",
    "StoreConflict",
    "StoreError",
    "StoredSecret",
]
