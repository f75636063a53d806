"""Rotation: changes the passwords of a pair so that no pool is ever locked out.

``stores`` says what a secret store must do, and does it for a JSON file and for AWS Secrets Manager. ``plan`` decides
and ``gates`` says why not, both pure; ``database`` asks and alters Postgres; ``run`` is one rotation in progress, and
``rotator`` the class to use.
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
