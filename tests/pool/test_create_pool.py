"""``create_pool`` and the class that it makes take the same options, and help() answers in three screens."""

from __future__ import annotations

import inspect
import pydoc
import re

import asyncpg

import aiopqr

OPTIONS = inspect.signature(aiopqr.create_pool).parameters


def test_the_function_and_the_class_have_the_same_options_and_defaults() -> None:
    of_the_class = inspect.signature(aiopqr.AlternatingPool).parameters
    assert {name: option.default for name, option in OPTIONS.items()} == {
        name: option.default for name, option in of_the_class.items()
    }


def test_help_fits_three_screens_and_explains_every_option() -> None:
    text = pydoc.plain(pydoc.render_doc(aiopqr.create_pool))
    assert len(text.splitlines()) <= 3 * 28  # Python 3.13 puts each parameter on its own line
    assert " object at 0x" not in text
    unexplained = {name for name in OPTIONS if f"``{name}``" not in text} - {"dsn", "connect_arguments"}
    assert not unexplained
    for word in ("seconds", "CredentialsRefused", "ConnectTimeout", "ConfigurationError"):
        assert word in text


def test_every_option_of_asyncpg_is_an_option_here() -> None:
    from aiopqr.options import OneConnectArguments

    theirs = set(inspect.signature(asyncpg.create_pool).parameters) | set(inspect.signature(asyncpg.connect).parameters)
    typed = set(OneConnectArguments.__annotations__)
    for base in OneConnectArguments.__mro__:
        typed |= set(getattr(base, "__annotations__", {}))
    assert theirs - set(OPTIONS) - typed - {"user", "password", "connect_kwargs"} == set()


def test_no_public_signature_shows_an_address() -> None:
    for method in ("acquire", "release", "close", "drain"):
        signature = str(inspect.signature(getattr(aiopqr.AlternatingPool, method)))
        assert not re.search(r"0x[0-9a-f]+", signature)
