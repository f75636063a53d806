"""Rotation: changes the passwords of a pair so that no pool is ever locked out.

Use the class in ``rotator``. ``run`` is one rotation in progress. ``plan`` decides what to do and ``gates`` finds
reasons against it; both are pure. ``database`` queries and alters Postgres. ``stores`` defines what a secret store must
do, and implements it for a JSON file, AWS Secrets Manager and Vault.
"""

from .announcing import Announcing
from .errors import (
    PathDown,
    RotationFailed,
    RotationRefused,
    RotationUndone,
    StoreConflict,
    StoreError,
    StoreNotWritable,
)
from .gates import Gate, Objection, Rules
from .passwords import PasswordRule
from .plan import Action, Plan
from .rotator import Rotation, Rotator
from .run import Step
from .stores import FileStore, SecretStore, StoredSecret

__all__ = [
    "Action",
    "Announcing",
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
    "StoreNotWritable",
    "StoredSecret",
]
