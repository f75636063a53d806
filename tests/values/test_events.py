"""Events: frozen, passed on to the log and to every listener, and harmed by none."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from aiopqr import events
from aiopqr.credentials import Parity
from aiopqr.events import Emitter, Event, Listener, Replaced, ServerRecovered, ServerUnavailable

DOWN = ServerUnavailable(name="orders", error="ConnectionRefusedError")


def all_events() -> list[type[Event]]:
    return [
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    ]


@pytest.mark.parametrize("kind", all_events())
def test_every_event_is_frozen_documented_and_bears_the_name_of_its_source(kind: type[Event]) -> None:
    assert kind.__doc__
    fields = [field.name for field in dataclasses.fields(kind)]
    event = kind(**dict.fromkeys(fields, "x"))  # type: ignore[arg-type]
    assert event.name == "x"
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        event.name = "y"  # type: ignore[misc]
    assert not any("password" in name or "secret" in name for name in fields)


@pytest.mark.parametrize("kind", all_events())
def test_every_event_is_a_sentence_in_the_log(kind: type[Event]) -> None:
    kinds = {
        "str": "x",
        "float": 1.5,
        "int": 2,
        "bool": True,
        "Parity": Parity.ODD,
        "tuple[str, ...]": ("x",),
        "tuple[Parity, ...]": (),
    }
    fields = {field.name: kinds[str(field.type).removesuffix(" | None")] for field in dataclasses.fields(kind)}
    sentence = str(kind(**{**fields, "name": "orders"}))  # type: ignore[arg-type]
    assert sentence.startswith("orders: ")
    assert "=" not in sentence
    assert kind.__name__ not in sentence


def test_the_log_says_what_happened_and_what_is_done_about_it() -> None:
    refused = events.AccountQuarantined(
        name="orders", parity=Parity.ODD, username="orders_odd", verdict="credential", sqlstate="28P01", retry_in=30.0
    )
    assert str(refused) == (
        "orders: orders_odd was refused (28P01, wrong password, or the account does not exist); fetching new "
        "credentials, and not using this account for 30 s unless it gets a new password"
    )


def test_a_log_handler_that_raises_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left on device")

    heard: list[Event] = []
    handler = Broken()
    logging.getLogger("aiopqr").addHandler(handler)
    try:
        Emitter([heard.append]).emit(DOWN)
    finally:
        logging.getLogger("aiopqr").removeHandler(handler)
    assert heard == [DOWN]
    assert "no space left on device" in capsys.readouterr().err


def test_listeners_hear_in_order_until_they_are_removed() -> None:
    heard: list[tuple[int, Event]] = []
    first: Listener = lambda event: heard.append((1, event))  # noqa: E731
    emitter = Emitter([first])
    emitter.add(lambda event: heard.append((2, event)))
    emitter.emit(DOWN)
    emitter.remove(first)
    emitter.emit(DOWN)
    assert heard == [(1, DOWN), (2, DOWN), (2, DOWN)]


@pytest.mark.parametrize("error", [LookupError("no such thing"), asyncio.CancelledError(), GeneratorExit()])
def test_a_listener_that_raises_is_logged_and_harms_nobody(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise error

    Emitter([broken, heard.append]).forward(DOWN)
    assert heard == [DOWN]
    assert "orders" in caplog.text
    assert "failed on ServerUnavailable" in caplog.text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_listener_does_not_swallow_what_ends_the_process(stop: type[BaseException]) -> None:
    def ends(event: Event) -> None:
        raise stop

    with pytest.raises(stop):
        Emitter([ends]).forward(DOWN)


def test_a_listener_may_remove_itself_while_it_is_called() -> None:
    heard: list[Event] = []

    def once(event: Event) -> None:
        emitter.remove(once)

    emitter = Emitter([once, heard.append])
    emitter.forward(DOWN)
    emitter.forward(DOWN)
    assert heard == [DOWN, DOWN]


def test_what_changes_state_is_logged_once_and_the_rest_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    emitter = Emitter()
    with caplog.at_level(logging.DEBUG, logger="aiopqr"):
        emitter.emit(DOWN)
        emitter.emit(ServerRecovered(name="orders", after=1.0))
        emitter.emit(Replaced(name="orders", parity=Parity.ODD, age=1.0, why="lifetime"))
        emitter.forward(DOWN)
    assert [(record.levelname, record.event) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("WARNING", DOWN),
        ("INFO", ServerRecovered(name="orders", after=1.0)),
    ]
