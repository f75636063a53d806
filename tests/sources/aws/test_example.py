"""The example and the documents do what they claim."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from aiopqr.rotation.stores.document import new_document
from aiopqr.testing import RotatingPostgres
from aiopqr.testing.aws import REGION, SecretsManager

EXAMPLES = Path(__file__).parents[3] / "examples"


async def run(**environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIOPQR_", "AWS_", "PG"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error"),
        str(EXAMPLES / "aws_secrets_manager.py"),
        env={**kept, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert not re.search("Traceback|Warning", out.decode()), out.decode()
    return out.decode()


async def test_the_example_rotates_both_accounts_under_load_without_an_error() -> None:
    output = await run()
    assert output.count("was changed") == 2
    assert re.search(r"[1-9]\d* queries, 0 errors", output)


async def test_the_example_connects_to_a_secret_of_yours(service: SecretsManager, postgres: RotatingPostgres) -> None:
    from datetime import UTC, datetime

    server = postgres.server
    place = {"host": server.host, "port": server.port, "dbname": postgres.database}
    secret = await service.create_secret({**new_document(postgres.pair, datetime.now(UTC)), **place})
    aws = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": service.endpoint_url, "AWS_DEFAULT_REGION": REGION}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    output = await run(AIOPQR_SECRET=secret, **aws, **keys)
    odd, even = postgres.usernames
    assert f"'{odd}': 2" in output
    assert f"'{even}': 2" in output


def _policies() -> list[Any]:
    blocks = re.findall(r"```json\n(.*?)```", (EXAMPLES / "aws_lambda" / "README.md").read_text(), re.DOTALL)
    return [json.loads(block) for block in blocks]


@pytest.mark.parametrize("policy", _policies(), ids=lambda policy: policy["Statement"][0]["Sid"])
def test_the_documented_policies_allow_named_actions_on_named_resources(policy: Any) -> None:
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any(action.endswith("*") for action in statement["Action"])
