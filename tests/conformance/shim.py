"""Runs asyncpg's own pool tests with ``AlternatingPool`` in the place of ``asyncpg.Pool``: started by ``run.py``.

The tests give their pools a ``user`` and perhaps a ``password``, which this library takes as ``credentials``. That is
translated here, since a library that took both would not know which one counts.
"""

from __future__ import annotations

import logging
import sys
import unittest
from pathlib import Path
from typing import Any

import asyncpg
import asyncpg.pool

import aiopqr


def _split(kwargs: dict[str, Any]) -> tuple[aiopqr.CredentialPair, dict[str, Any]]:
    """The account that the arguments name, as a degraded pair, and the arguments without it."""
    rest = {key: value for key, value in kwargs.items() if key not in ("user", "password")}
    # The server trusts local connections, except in the one test that passes a password.
    account = aiopqr.Credential(kwargs.get("user") or "postgres", kwargs.get("password") or "unused")
    return aiopqr.CredentialPair(odd=account, even=None), rest


class Pool(aiopqr.AlternatingPool):
    """Takes the arguments of asyncpg's pool and nothing else; all that this library adds has its default."""

    made = 0
    session_reset = "full"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pair, rest = _split(kwargs)
        super().__init__(*args, credentials=pair, session_reset=self.session_reset, **rest)
        Pool.made += 1

    def set_connect_args(self, dsn: str | None = None, **kwargs: Any) -> None:
        super().set_connect_args(dsn, **_split(kwargs)[1])


def main() -> int:
    directory, kind, Pool.session_reset, *names = sys.argv[1:]
    logging.getLogger("aiopqr").setLevel(logging.ERROR)  # every pair is degraded here, on purpose
    if kind == "aiopqr":
        # Before asyncpg's test cases are imported, which take the class as a default. Its create_pool() looks it up.
        asyncpg.pool.Pool = asyncpg.Pool = Pool  # type: ignore[misc]
    sys.path.insert(0, str(Path(directory)))
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suite = loader.loadTestsFromName("test_pool")
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    print(f"{result.testsRun} run, {len(result.skipped)} skipped, {Pool.made} pools of aiopqr's")
    is_ours = Pool.made > 0 if kind == "aiopqr" else Pool.made == 0
    return 0 if result.wasSuccessful() and not result.skipped and is_ours else 1


if __name__ == "__main__":
    sys.exit(main())
