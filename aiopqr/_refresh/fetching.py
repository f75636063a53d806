"""One fetch from the source, in a separate task so that it can be abandoned, and closing the source."""

from __future__ import annotations

import asyncio
import logging

from ..clock import cancel
from ..credentials import CredentialPair
from ..errors import InvalidSecret, SourceError, SourceTimeout, without_locals
from ..sources import CredentialSource

logger = logging.getLogger("aiopqr")

_CLOSE_MAX = 30.0  # seconds


async def fetched(
    source: CredentialSource, timeout: float, name: str, flights: set[asyncio.Task[object]]
) -> CredentialPair | BaseException:
    """Fetch once, and return the pair or the error. The source has ``timeout`` seconds to answer.

    The task stays in ``flights`` until it ends. That may be after this function returns, since it does not wait for
    a source that answers too late or ignores its cancellation. The late result is dropped.
    """
    flight = asyncio.create_task(_ask(source), name=f"aiopqr-{name}-fetch")
    flights.add(flight)
    flight.add_done_callback(flights.discard)
    try:
        await asyncio.wait({flight}, timeout=timeout)
    except BaseException:
        cancel((flight,))
        raise
    if not flight.done():
        flight.cancel()
        flight.add_done_callback(_consume)
        return SourceTimeout(f"{_kind(source)} did not answer within {timeout:g} s")
    if flight.cancelled():
        return SourceError(f"{_kind(source)} cancelled its own fetch")
    if exc := flight.exception():
        return without_locals(exc)
    pair = flight.result()
    if not isinstance(pair, CredentialPair):
        return InvalidSecret(f"{_kind(source)} must return a CredentialPair, not {type(pair).__name__}")
    return pair


async def close(source: CredentialSource, name: str) -> None:
    """Close the source if it can be closed. If that takes too long, cancel it and log a warning."""
    if (aclose := getattr(source, "aclose", None)) is None:
        return
    try:
        async with asyncio.timeout(_CLOSE_MAX) as limit:
            await aclose()
    except TimeoutError:
        if not limit.expired():
            raise
        logger.warning("%s: %s was not closed within %g s", name, _kind(source), _CLOSE_MAX)


async def _ask(source: CredentialSource) -> object:
    return await source.fetch()


def _consume(flight: asyncio.Task[object]) -> None:
    """Retrieve the error of an abandoned fetch, so that asyncio does not report it."""
    if not flight.cancelled():
        flight.exception()


def _kind(source: CredentialSource) -> str:
    return f"the source ({type(source).__name__})"
