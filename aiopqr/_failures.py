"""Logs exceptions in places where no caller could handle them, so that they do not end background work."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("aiopqr")


def report(message: str, *args: object) -> None:
    """Log the exception that is being handled, with its stack."""
    try:
        logger.exception(message, *args)  # noqa: LOG004
    except Exception:  # a log handler that raises must not end the background work either
        traceback.print_exc()


@contextmanager
def reporting(message: str, *args: object) -> Iterator[None]:
    """Log any exception raised inside, and continue after the block."""
    try:
        yield
    except Exception:
        report(message, *args)
