"""One fetch from the source, in a separate task so that it can be abandoned."""

from __future__ import annotations

import asyncio

from ..clock import cancel
from ..credentials import CredentialPair
from ..errors import InvalidSecret, SourceError, SourceTimeout, without_locals
from ..sources import CredentialSource


async def fetched(
    source: CredentialSource, timeout: float, name: str, flights: set[asyncio.Task[object]]
) -> CredentialPair | BaseException:
    """Fetch once, and return the pair or the error. The source has ``timeout`` seconds to answer.

    The task stays in ``flights`` until it ends. That may be after this function returns, since a source that answers
    too late, or ignores its cancellation, is not waited for. Its result is dropped.
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


async def _ask(source: CredentialSource) -> object:
    return await source.fetch()


def _consume(flight: asyncio.Task[object]) -> None:
    """Retrieve the error of an abandoned fetch, so that asyncio does not report it."""
    if not flight.cancelled():
        flight.exception()


def _kind(source: CredentialSource) -> str:
    return f"the source ({type(source).__name__})"
