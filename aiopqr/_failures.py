"""What is raised where nobody waits for it goes to the log with its stack, and ends nothing."""

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
    except Exception:  # a log handler that raises must not end what it reports on
        traceback.print_exc()


@contextmanager
def reporting(message: str, *args: object) -> Iterator[None]:
    """Log whatever is raised inside, and go on."""
    try:
        yield
    except Exception:
        report(message, *args)
