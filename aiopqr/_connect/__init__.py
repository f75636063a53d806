"""Connecting with a pair of accounts: which account to use, what a refusal means, and how to wait out an outage."""

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
