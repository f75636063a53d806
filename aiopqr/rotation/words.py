"""Numbers, times and errors as people read them."""

from __future__ import annotations

from datetime import datetime

from ..errors import AiopqrError, describe


def counted(number: int, what: str) -> str:
    """``1 session``, ``2 sessions``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """``90 s``, ``33 min``, ``5.5 h``, ``90 days``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 120 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def moment(time: datetime) -> str:
    """A time to the second, with its zone."""
    return f"{time:%Y-%m-%d %H:%M:%S %Z}"


def text_of(exc: Exception) -> str:
    """What an error of ours says, or what a driver's is in words. No secret is in it."""
    return str(exc) if isinstance(exc, AiopqrError) else describe(exc)
