"""A connection with a pair of accounts: which account next, what a refusal means, how an outage is waited out."""

from .connector import Connector, maker_of
from .maker import CONNECT_TIMEOUT, Made, Maker
from .roles import NO_WRITER, QUESTIONS

__all__ = [
    "CONNECT_TIMEOUT",
    "NO_WRITER",
    "QUESTIONS",
    "Connector",
    "Made",
    "Maker",
    "maker_of",
]
