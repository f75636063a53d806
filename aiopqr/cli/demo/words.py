"""Describes for the screen what happens: our pool's events, and whatever else is logged."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from ...events import (
    AccountQuarantined,
    AccountRecovered,
    AllRefused,
    ConnectionLost,
    Event,
    FellBack,
    Refreshed,
    RefreshFailed,
    ReplacementDelayed,
    ServerRecovered,
    ServerUnavailable,
)


def sentence(event: Event) -> tuple[str, str] | None:
    """A sentence about an event of the pool, and its kind: ``good``, ``bad`` or ``note``. None for other events."""
    match event:
        case AccountQuarantined():
            return f"the server refused {event.parity}; the pool does not use it until it gets a new password", "note"
        case FellBack():
            return f"immediately fell back to {event.parity}", "good"
        case AllRefused():
            return "every account is refused; open connections keep working, and new ones wait", "note"
        case Refreshed():
            return f"read the new password of {' and '.join(event.changed)} from the file", "good"
        case AccountRecovered():
            return f"{event.parity} logs in again, {event.after:.1f} s after it was refused", "good"
        case ReplacementDelayed():
            return "no replacement can be opened yet, so connections stay in use past their lifetime", "note"
        case RefreshFailed() | ServerUnavailable():
            return event.error, "bad"
        case ServerRecovered():
            return f"the server answers again after {event.after:.1f} s", "good"
        case ConnectionLost():
            return f"a connection was lost: {event.error}", "bad"
    return None


@contextlib.contextmanager
def log_to(show: Callable[[float, str, str], None], started: float) -> Iterator[None]:
    """Show log warnings on the screen, which they would otherwise garble. Events are shown there already."""

    class ToScreen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # asyncpg's pool logs every failed login of its background maintenance; the demo counts those.
            if not hasattr(record, "event") and record.name != "asyncpg.pool":
                show(time.perf_counter() - started, record.getMessage().splitlines()[0], "bad")

    handler = ToScreen(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
