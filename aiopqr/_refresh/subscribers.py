"""The connectors that use a refresher's pair and are notified of newer ones."""

from __future__ import annotations

import weakref
from typing import Protocol

from .._failures import reporting
from ..credentials import CredentialPair
from ..events import Event


class Subscriber(Protocol):
    """Something that uses the pair."""

    def replace(self, pair: CredentialPair) -> None:
        """Called with each newer pair."""
        ...

    def is_refused(self) -> bool:
        """Whether none of the pair's accounts works for this subscriber."""
        ...

    def on_event(self, event: Event) -> None:
        """Called with each of the refresher's events."""
        ...


class Subscribers:
    """The subscribers of one refresher, held weakly. An error in one is logged and does not affect the others."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._all: weakref.WeakSet[Subscriber] = weakref.WeakSet()

    def add(self, subscriber: Subscriber) -> None:
        self._all.add(subscriber)

    def replace(self, pair: CredentialPair) -> None:
        """Pass a newer pair to all of them."""
        for subscriber in tuple(self._all):
            with reporting("%s: a subscriber failed on a newer pair", self._name):
                subscriber.replace(pair)

    def notify(self, event: Event) -> None:
        """Pass an event to all of them."""
        for subscriber in tuple(self._all):
            with reporting("%s: a subscriber failed on an event", self._name):
                subscriber.on_event(event)

    def is_any_refused(self) -> bool:
        """Whether any of them has no working account."""
        return any(subscriber.is_refused() for subscriber in self._all)
