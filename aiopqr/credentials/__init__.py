"""A password, an account's credential, and the accounts that a service may use at one moment.

All layers pass these values on. They know nothing of databases, stores or clocks. Whatever is wrong with one is
reported when it is made, by the name of the key and never by its value; so a pair that exists is valid.
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
