"""What happens, in words for the screen: the events of our pool, and what else is logged."""

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
    """An event of the pool, in words for the screen, and of what kind it is."""
    match event:
        case AccountQuarantined():
            return f"the server refused {event.parity}: set aside until a new password comes", "note"
        case FellBack():
            return f"the connect fell back to {event.parity}, in the same breath", "good"
        case AllRefused():
            return "every account is refused: open connections serve on, and connects wait", "note"
        case Refreshed():
            return f"read the new password of {' and '.join(event.changed)} from the file", "good"
        case AccountRecovered():
            return f"{event.parity} logs in again, {event.after:.1f} s after its refusal", "good"
        case ReplacementDelayed():
            return "no replacement to be had yet: connections outlive their lifetime", "note"
        case RefreshFailed() | ServerUnavailable():
            return event.error, "bad"
        case ServerRecovered():
            return f"the server answers again, after {event.after:.1f} s", "good"
        case ConnectionLost():
            return f"a connection was lost: {event.error}", "bad"
    return None


@contextlib.contextmanager
def log_to(tell: Callable[[float, str, str], None], started: float) -> Iterator[None]:
    """Show log warnings inside the screen, which they would garble otherwise; events are shown there already."""

    class ToScreen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # asyncpg's pool logs every login that its own upkeep fails with; they are counted.
            if not hasattr(record, "event") and record.name != "asyncpg.pool":
                tell(time.perf_counter() - started, record.getMessage().splitlines()[0], "bad")

    handler = ToScreen(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
