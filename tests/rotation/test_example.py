"""The example of a rotator in Python runs as it stands."""

from __future__ import annotations

from pathlib import Path

from tests.test_examples import run


async def test_the_scheduled_rotator_waits_for_its_gates_and_alternates(tmp_path: Path) -> None:
    out = await run("rotate_on_schedule.py", tmp_path)
    lines = out.splitlines()
    assert [line for line in lines if line.endswith("changed")] == ["even: changed", "odd: changed", "even: changed"]
    assert "not yet: too-soon" in lines
    assert lines.count("served all the same: 1") == 3
