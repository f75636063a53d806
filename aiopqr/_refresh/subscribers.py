"""Those who use a refresher's pair, and hear of newer ones."""

from __future__ import annotations

import weakref
from typing import Protocol

from .._failures import reporting
from ..credentials import CredentialPair
from ..events import Event


class Subscriber(Protocol):
    """Something that uses the pair."""

    def replace(self, pair: CredentialPair) -> None:
        """There is a newer pair."""
        ...

    def is_refused(self) -> bool:
        """Whether none of the pair's accounts works for it."""
        ...

    def heard(self, event: Event) -> None:
        """The refresher has reported something."""
        ...


class Subscribers:
    """The subscribers of one refresher, held weakly. One that fails is logged, and harms no other."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._all: weakref.WeakSet[Subscriber] = weakref.WeakSet()

    def add(self, subscriber: Subscriber) -> None:
        self._all.add(subscriber)

    def replace(self, pair: CredentialPair) -> None:
        """Give all of them a newer pair."""
        for subscriber in tuple(self._all):
            with reporting("%s: a subscriber failed on a newer pair", self._name):
                subscriber.replace(pair)

    def hear(self, event: Event) -> None:
        """Pass an event on to all of them."""
        for subscriber in tuple(self._all):
            with reporting("%s: a subscriber failed on an event", self._name):
                subscriber.heard(event)

    def is_any_refused(self) -> bool:
        """Whether one of them has no account that works."""
        return any(subscriber.is_refused() for subscriber in self._all)
