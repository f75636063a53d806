"""Passes events on to the log and the listeners. If either raises, the code that emits the event is not affected."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable

from .._failures import report
from .event import Event, Listener

logger = logging.getLogger("aiopqr")


class Emitter:
    """Passes events on to the log and the listeners. If a listener raises, that is logged and affects nobody else."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Call ``listener`` with each event from now on, on the event loop."""
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Stop calling ``listener``. Raises ``ValueError`` if it was not added."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Log the event at its level, and pass it on to the listeners."""
        if event.level is not None:
            try:
                logger.log(event.level, "%s", event, extra={"event": event})
            except Exception:  # a broken log handler must not break the code that logs; print it, as logging does
                traceback.print_exc()
        self.forward(event)

    def forward(self, event: Event) -> None:
        """Pass an event on to the listeners, without logging it."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except (
                BaseException
            ):  # even CancelledError: if a listener gets it from a future, this task was not cancelled
                report("%s: listener %r failed on %s", event.name, listener, type(event).__name__)
