"""Whatever a parser gets: it raises only the library's own errors, and no text that can be shown contains the input."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import given

from aiopqr import options
from aiopqr._pool import lifetime_option
from aiopqr.credentials import CredentialPair
from aiopqr.errors import AiopqrError, ConfigurationError, InvalidSecret, SourceError
from aiopqr.sources import FileSource, as_source

CANARY = "cAnArY~7f3a"  # nothing that could be the name of a key, which errors may show
KEYS = [
    f"{account}_{part}" for account in ("odd", "even", "pending") for part in ("username", "password")
] + ["active_credential", "username", "user", "password", "host", "port", "dbname", "engine"]  # fmt: skip

awkward = st.sampled_from(
    ["", "\0", "\ud800", "\u200b", "odd", "even", "0", "5432", "null", "'", '"', "\\", "\n", "é", "@:/?#%&", "a" * 300]
)
spoken = st.one_of(awkward, st.text(max_size=8), st.just(CANARY), awkward.map(lambda text: f"{CANARY}{text}"))
scalars = st.one_of(spoken, st.none(), st.booleans(), st.integers(), st.floats(), st.just(10**400))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(spoken, inner, max_size=2))
names = st.one_of(st.sampled_from(KEYS), spoken)
entries = st.dictionaries(names, values, max_size=12) | st.fixed_dictionaries(dict.fromkeys(KEYS[:4], values))


texts = st.one_of(
    entries.map(json.dumps),
    entries.map(json.dumps).flatmap(lambda text: st.integers(0, len(text)).map(lambda cut: text[:cut])),
    spoken,
    st.just("[" * 20_000),
    st.just('{"port": ' + "9" * 5000 + "}"),
    values.map(json.dumps),
)
contents = st.one_of(
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    texts.map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.binary(max_size=50),
)


@contextmanager
def nothing_shown(*allowed: type[AiopqrError], but_arguments: bool = False) -> Iterator[None]:
    """Only the library's own errors are raised, and they do not show the canary anywhere.

    ``but_arguments``: the frames that were called hold what the caller gave them by mistake, as the caller's own does.
    """
    try:
        yield
    except allowed as exc:
        hunt(exc, locals_too=not but_arguments)


def hunt(exc: BaseException | None, *, locals_too: bool) -> None:
    seen: list[BaseException] = []
    while exc is not None and exc not in seen:
        seen.append(exc)
        assert CANARY not in f"{exc} {exc!r} {exc.args!r} {vars(exc)!r}"
        printed = traceback.TracebackException.from_exception(exc, capture_locals=True)
        for frame in printed.stack if locals_too else ():
            if f"{os.sep}aiopqr{os.sep}" in frame.filename and f"{os.sep}tests{os.sep}" not in frame.filename:
                assert CANARY not in repr(frame.locals), f"in the locals of {frame.name}"
        exc = exc.__cause__ or exc.__context__


@given(st.one_of(entries, texts, contents, values))
def test_secrets(secret: Any) -> None:
    with nothing_shown(InvalidSecret):
        pair = CredentialPair.from_secret(secret)
        shown = f"{pair} {pair!r} {pair.odd} {pair.even!r} {pair.pending}"
        passwords = [c.password.reveal() for c in pair.credentials() if CANARY in c.password.reveal()]
        assert not any(password in shown for password in passwords if password not in names_of(pair))


def names_of(pair: CredentialPair) -> str:
    return f"{[c.username for c in pair.credentials()]!r} {pair.endpoint!r}"


urls = st.one_of(
    spoken,
    st.builds(
        "{}://{}{}{}/{}?{}".format,
        st.sampled_from(["postgresql", "postgres", "mysql", ""]),
        st.sampled_from(["", "app@", f"app:{CANARY}@", f":{CANARY}@", f"app%3a{CANARY}%40", "%00@", "["]),
        st.sampled_from(["", "db", "[::1]", "[::1", "a,b", "%2Frun", "℀", "db℀"]),
        st.sampled_from(["", ":5432", ":x", ":99999999", ":"]),
        spoken,
        st.one_of(spoken, st.sampled_from([f"password={CANARY}", "user=x", f"PASSWORD={CANARY}", "%", "a=b;c", "&&&"])),
    ),
)
arguments = st.fixed_dictionaries({}, optional={"dsn": st.one_of(urls, scalars), "user": scalars, "password": scalars})


@given(st.lists(st.one_of(urls, scalars), max_size=2), arguments)
def test_connect_arguments(args: list[Any], kwargs: dict[str, Any]) -> None:
    with nothing_shown(ConfigurationError, but_arguments=True):
        options.check_connect_arguments(tuple(args), kwargs)


@given(scalars, scalars)
def test_options(value: Any, other: Any) -> None:
    for check in (options.non_negative, options.positive, options.optional_timeout, options.whole_number_or_none):
        with nothing_shown_but_the_value():
            check("max_lifetime", value)
    with nothing_shown_but_the_value():
        lifetime_option(value, other)


@contextmanager
def nothing_shown_but_the_value() -> Iterator[None]:
    """An impossible number is shown, since it is not secret, with the name of the option."""
    problem = "max_lifetime"
    try:
        yield
    except ConfigurationError as exc:
        problem = str(exc)
    assert "max_lifetime" in problem


@given(values)
def test_credentials_arguments(value: Any) -> None:
    with nothing_shown(ConfigurationError, but_arguments=True):
        as_source(value)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def fetch(path: Path) -> None:
    source = FileSource(path)
    for _ in range(2):
        with nothing_shown(SourceError):
            anyio.run(source.fetch)
        assert CANARY not in repr(source)


@given(content=contents)
def test_files(place: Path, content: bytes) -> None:
    path = place / "credentials.json"
    path.write_bytes(content)
    fetch(path)


@given(
    files=st.dictionaries(
        st.sampled_from([*KEYS, "other", ".hidden"]),
        st.one_of(contents, st.sampled_from([b"x", b"odd", b"even\n", CANARY.encode(), None])),
        max_size=8,
    ),
    is_mounted=st.booleans(),
)
def test_folders(place: Path, files: dict[str, bytes | None], is_mounted: bool) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    data = folder / "..2026_11_23"
    data.mkdir()
    for name, content in files.items():
        if content is None:
            (data / name).mkdir()
        else:
            (data / name).write_bytes(content)
    if is_mounted:
        (folder / "..data").symlink_to(data.name)
    fetch(folder if is_mounted else data)
    shutil.rmtree(folder)
