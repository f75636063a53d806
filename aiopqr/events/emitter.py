"""How an event reaches the log and the listeners. Neither can harm whoever reports it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable

from .._failures import report
from .event import Event, Listener

logger = logging.getLogger("aiopqr")


class Emitter:
    """Passes events on to the log and to the listeners. If a listener raises, that is logged and harms nobody else."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Call ``listener`` with each event from now on, on the event loop."""
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Call it no more. Raises ``ValueError`` if it was not added."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Log the event at its level, and pass it on to the listeners."""
        if event.level is not None:
            try:
                logger.log(event.level, "%s", event, extra={"event": event})
            except Exception:  # a log handler that raises must not end what it reports on; logging does the same
                traceback.print_exc()
        self.forward(event)

    def forward(self, event: Event) -> None:
        """Pass an event on to the listeners, without logging it."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # a CancelledError, say of a future that it looked at, cancels nobody here
                report("%s: listener %r failed on %s", event.name, listener, type(event).__name__)
