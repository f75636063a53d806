"""How the messages to an idle connection are parsed, in every fragmentation, without an event loop."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr._pool.idle_messages import LONGEST, Heard, MessageReader, Stop
from aiopqr._pool.self_test import message

READY = message(b"Z", b"I")
DONE = message(b"C", b"RESET\0")
ROW = message(b"T", b"\0\0") + message(b"D", b"\0\0")
CLEAN = ROW + DONE + DONE + READY
REFUSED = message(b"E", b"SFEHLER\0VERROR\0C57014\0Mcanceling statement\0\0")
GOODBYE = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")

# Text has no NUL in Postgres.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(str.encode)
statuses = st.builds(lambda name, value: message(b"S", name + b"\0" + value + b"\0"), words, words)
notices = words.map(lambda text: message(b"N", b"SNOTICE\0M" + text + b"\0\0"))
notifications = st.builds(
    lambda pid, channel, text: message(b"A", pid.to_bytes(4, "big") + channel + b"\0" + text + b"\0"),
    st.integers(6, 1 << 22),
    words,
    words,
)
at_any_time = st.one_of(statuses, notices, notifications)
parts = st.lists(st.one_of(at_any_time, st.just(ROW)), max_size=6)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """``stream`` in pieces that begin at ``places``, some of which may lie beyond its end."""
    at = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(at)]


def listen(reader: MessageReader, pieces: list[bytes]) -> list[Heard]:
    """What is heard, piece by piece, and from the rest after an answer."""
    heard: list[Heard] = []
    for piece in pieces:
        heard.append(reader.hear(piece))
        if heard[-1].stop is Stop.READY:
            heard.append(reader.hear(b""))
        elif heard[-1].stop is not None:
            break
    return heard


@given(before=parts, after=st.lists(at_any_time, max_size=4), places=st.lists(st.integers(0, 400), max_size=12))
def test_an_answer_is_dropped_and_everything_else_goes_to_asyncpg_in_any_fragmentation(
    before: list[bytes], after: list[bytes], places: list[int]
) -> None:
    reader = MessageReader()
    for _ in range(3):  # the second time it may know the answer
        reader.expect()
        heard = listen(reader, cut(b"".join(before) + DONE + READY + b"".join(after), places))
        stops = [one.stop for one in heard if one.stop]
        assert stops == [Stop.READY]
        ready = next(at for at, one in enumerate(heard) if one.stop)
        assert b"".join(one.forward for one in heard[: ready + 1]) == b"".join(part for part in before if part != ROW)
        assert b"".join(one.forward for one in heard[ready + 1 :]) == b"".join(after)
        assert not reader.partial


@given(messages=st.lists(at_any_time, min_size=1, max_size=4), places=st.lists(st.integers(0, 400), max_size=8))
def test_what_an_idle_server_sends_goes_to_asyncpg_whole_and_the_rest_can_be_taken(
    messages: list[bytes], places: list[int]
) -> None:
    stream = b"".join(messages)
    for end in range(len(stream) + 1):
        reader = MessageReader()
        forward = b"".join(one.forward for one in listen(reader, cut(stream[:end], places)))
        assert forward + reader.take_partial() == stream[:end]
        assert not reader.partial
        while forward:
            length = 1 + int.from_bytes(forward[1:5], "big")
            assert len(forward) >= length
            forward = forward[length:]


@given(message=at_any_time, place=st.integers(1, 400))
def test_an_answer_that_begins_within_a_message_is_never_taken_for_a_confirmation(message: bytes, place: int) -> None:
    reader = MessageReader()
    reader.expect()
    rest = message[1 + place % (len(message) - 1) :]
    if rest:
        assert Stop.READY not in [heard.stop for heard in listen(reader, [rest, CLEAN])]


@pytest.mark.parametrize("refused", [REFUSED, GOODBYE], ids=["error", "fatal"])
@pytest.mark.parametrize("is_answer", [True, False], ids=["in an answer", "idle"])
def test_an_error_is_told_with_its_fields_and_asyncpg_gets_only_a_fatal_one(refused: bytes, is_answer: bool) -> None:
    reader = MessageReader()
    if is_answer:
        reader.expect()
    *_, heard = listen(reader, [ROW * is_answer + refused])
    assert heard.stop is Stop.ERROR
    assert heard.fields is not None
    assert heard.fields["C"] == ("57P01" if refused is GOODBYE else "57014")
    assert heard.forward == (GOODBYE if refused is GOODBYE else b"")


def test_nothing_but_messages_of_any_time_and_errors_belongs_to_an_idle_connection() -> None:
    for kind in set(range(256)) - set(b"SANE"):
        assert MessageReader().hear(message(bytes([kind]), b"I")).stop is Stop.UNEXPECTED


def test_nothing_else_belongs_to_an_answer() -> None:
    for kind in set(range(256)) - set(b"SANETDCIZ"):
        reader = MessageReader()
        reader.expect()
        assert reader.hear(DONE).stop is None
        assert reader.hear(message(bytes([kind]), b"I")).stop is Stop.UNEXPECTED


@pytest.mark.parametrize("end", [b"T", b"E", b"", b"II", b"\0"])
def test_an_end_that_leaves_a_transaction_open_or_is_malformed_is_no_confirmation(end: bytes) -> None:
    reader = MessageReader()
    reader.expect()
    assert reader.hear(DONE + message(b"Z", end)).stop is Stop.UNEXPECTED


def test_an_end_without_an_answer_is_no_confirmation() -> None:
    reader = MessageReader()
    for pieces in (
        [CLEAN],
        [DONE, READY],
        [CLEAN],
    ):  # it may remember the first, but not the last piece of the second
        reader.expect()
        assert listen(reader, pieces)[len(pieces) - 1].stop is Stop.READY
    reader.expect()
    assert reader.hear(READY).stop is Stop.UNEXPECTED


def test_a_second_answer_is_unexpected_also_if_it_is_known() -> None:
    reader = MessageReader()
    for _ in range(2):
        reader.expect()
        assert reader.hear(CLEAN) == Heard(b"", Stop.READY)
    assert reader.hear(CLEAN).stop is Stop.UNEXPECTED


@pytest.mark.parametrize("kind", [b"S", b"N", b"E", b"D"])
@pytest.mark.parametrize("length", [0, 3, LONGEST + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_length_of_a_message_is_limited_before_it_is_waited_for(kind: bytes, length: int) -> None:
    reader = MessageReader()
    reader.expect()
    assert reader.hear(kind + length.to_bytes(4, "big")).stop is Stop.UNEXPECTED


def test_the_longest_message_may_come_in_small_pieces() -> None:
    """It takes a moment; quadratic work would take many seconds."""
    reader = MessageReader()
    whole = message(b"N", bytes(LONGEST - 4))
    *_, last = [reader.hear(whole[at : at + 16]) for at in range(0, len(whole), 16)]
    assert last.forward == whole
