"""What all events have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events. ``name`` is that of the pool, connector or refresher that emitted it.

    ``str(event)`` is the sentence that is logged, at ``level``. If that is None, only the listeners get the event.
    """

    level: ClassVar[int | None] = None
    name: str


Listener = Callable[[Event], object]
