"""Each integration needs one extra, reports it if it is missing, and loads nothing from the others."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [
        ("starlette", "starlette", "starlette"),
        ("sqlalchemy", "sqlalchemy", "sqlalchemy"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_a_missing_dependency_is_told_with_the_extra_that_brings_it(module: str, needs: str, extra: str) -> None:
    code = f"import sys; sys.modules[{needs!r}] = None\nimport aiopqr.integrations.{module}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"pip install 'aiopqr[{extra}]'" in ended.stderr


@pytest.mark.parametrize("module", ["starlette", "sqlalchemy", "opentelemetry"])
def test_integrations_import_no_more_than_they_need(module: str) -> None:
    others = {"fastapi", "starlette", "sqlalchemy", "opentelemetry", "prometheus_client"} - {module}
    code = f"import sys, aiopqr.integrations.{module}\nprint({others!r} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
