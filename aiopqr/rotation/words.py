"""Formats numbers, times and errors for people."""

from __future__ import annotations

from datetime import datetime

from ..errors import AiopqrError, describe


def counted(number: int, what: str) -> str:
    """A number with its noun: ``1 session``, ``2 sessions``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """A duration in a suitable unit: ``90 s``, ``33 min``, ``5.5 h``, ``90 days``."""
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
    """An error's text, without secrets. If the error is not ours, :func:`describe` makes it safe."""
    return str(exc) if isinstance(exc, AiopqrError) else describe(exc)
