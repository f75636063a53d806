"""The example does what it claims."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "vault.py"


@pytest.mark.usefixtures("vault")  # skips the test if there is none
async def test_the_example_changes_passwords_under_load_without_an_error() -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIOPQR_", "VAULT_", "BAO_", "PG"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLE)),
        env=kept,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    assert re.search(r"^\d{3,} queries, 0 errors$", out.decode(), flags=re.MULTILINE), out.decode()
