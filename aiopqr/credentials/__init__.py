"""Passwords, credentials, and the pair of accounts that a service may use at one moment.

All layers use these values. They know nothing about databases, stores or clocks. They are checked when they are
created, so a pair that exists is valid. Errors name the key at fault and never show its value.
"""

from .account import Credential, Endpoint, Parity
from .pair import CredentialPair
from .schema import SECRET_KEYS, is_pair, parse_secret, parse_time
from .secret import Secret

__all__ = [
    "SECRET_KEYS",
    "Credential",
    "CredentialPair",
    "Endpoint",
    "Parity",
    "Secret",
    "is_pair",
    "parse_secret",
    "parse_time",
]
