"""The runbook says what to do about everything that can happen: each event, alert, gate and exit code, each option."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import aiopqr
from aiopqr import events
from aiopqr.cli.check import command as check
from aiopqr.cli.rotate import command as rotate
from aiopqr.rotation.gates import Gate
from aiopqr.sources.trouble import Trouble
from aiopqr.sources.vault.errors import ADVICE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def advice(page: str, key: str) -> str:
    """The last cell of the row whose first cell names ``key``."""
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and key in re.findall(r"[\w-]+", cells[0]):
            return cells[-1]
    return ""


EVENTS = [name for name in events.__all__ if name not in ("Event", "Emitter", "Listener")]
ALERTS = re.findall(r"alert: (\w+)", (ROOT / "examples" / "monitoring" / "alerts.yml").read_text())
EXIT_CODES = (rotate.DONE, rotate.FAILED, rotate.NOT_TRIED, rotate.REFUSED, rotate.FINISHED, rotate.UNDONE)
TROUBLES = set(ADVICE) - {Trouble.CONFLICT, Trouble.INVALID, Trouble.OTHER}  # whose own text is enough


@pytest.mark.parametrize("name", [*EVENTS, *ALERTS])
def test_every_event_and_alert_has_advice(name: str) -> None:
    assert advice("operations/alerts.md", name)


@pytest.mark.parametrize("gate", Gate)
def test_every_gate_has_advice(gate: Gate) -> None:
    assert advice("rotation.md", gate)


@pytest.mark.parametrize("code", [*EXIT_CODES, rotate.LEFT_TO_DO, 130])
def test_every_exit_code_of_rotate_has_advice(code: int) -> None:
    assert advice("rotation.md", str(code))


@pytest.mark.parametrize("code", check.EXIT_CODES.values())
def test_every_exit_code_of_check_has_advice(code: int) -> None:
    assert advice("reference/cli.md", str(code))


@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_every_trouble_with_vault_has_advice(trouble: Trouble) -> None:
    assert advice("vault.md", trouble.name)


def test_every_option_of_create_pool_is_explained() -> None:
    items = re.findall(r"^ *- (``.*?): ", aiopqr.create_pool.__doc__ or "", re.MULTILINE)
    explained = re.findall(r"``(\w+)``", "\n".join(items))
    parameters = inspect.signature(aiopqr.create_pool).parameters.values()
    assert explained == [one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
