"""Exceptions lose what their frames hold, and keep where they were raised."""

from __future__ import annotations

import traceback

from aiopqr.errors import without_locals


def fetch(error: Exception) -> None:
    password = "hunter2"
    raise error if password else AssertionError


def test_the_file_line_and_function_stay_and_the_locals_go() -> None:
    error = LookupError("no such key")
    try:
        fetch(error)
    except LookupError as exc:
        without_locals(exc)
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "in fetch" in shown
    assert "test_errors.py" in shown
    assert "hunter2" not in shown


def test_one_error_that_is_raised_ten_thousand_times_stays_small() -> None:
    error = LookupError("the store is down")  # as if from a source that keeps its error
    for _ in range(10_000):
        try:
            fetch(error)
        except LookupError as exc:
            without_locals(exc)
    assert len(traceback.extract_tb(error.__traceback__)) <= 60
