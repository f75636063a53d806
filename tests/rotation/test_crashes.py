"""A rotator killed at any moment: one account always works, and the next run makes the pair whole."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support.load import Load

import aiopqr
from aiopqr.credentials import Parity
from aiopqr.rotation.errors import RotationRefused
from aiopqr.rotation.gates import Gate, Rules
from aiopqr.sources import VaultSource

DRIVER = Path(__file__).with_name("crash_driver.py")
PROOF = os.environ.get("AIOPQR_PROOF") == "1"
AT_ONCE = Rules(max_lifetime=0.0, refresh_interval=0.0, margin=0.0)
RULES = Rules(max_lifetime=3000.0, refresh_interval=0.0, margin=0.0)


async def drive(
    rig: Any,
    *,
    fatal: int | None = None,
    refuse_new: bool = False,
    rules: Rules = RULES,
    killed_after: float | None = None,
) -> tuple[int, list[str]]:
    """Run the driver. Returns its exit code, and the moments that it survived."""
    server = rig.postgres.server
    setup = {
        "path": str(rig.path),
        "vault": "VAULT_ADDR" in rig.environment,
        "dsn": rig.postgres.dsn,
        "admin_dsn": server.dsn,
        "admin": server.admin,
        "refuse_new": refuse_new,
        "spacing": rules.spacing,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(DRIVER),
        json.dumps(setup),
        *([] if fatal is None else [str(fatal)]),
        env={**os.environ, **rig.environment, "ADMIN_PASSWORD": server.admin_password.reveal()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if killed_after is not None:
        asyncio.get_running_loop().call_later(killed_after, lambda: process.returncode is None and process.kill())
    out, err = await process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    return process.returncode, out.decode().splitlines()


async def check_after_a_crash(rig: Any, rules: Rules = RULES) -> None:
    """One account works with its stored password, the other with its stored or staged one; the next run repairs all."""
    pair = (await rig.store.read()).pair
    usable = [parity for parity in Parity if await rig.accepts(pair[parity])]
    if len(usable) == 1:
        assert pair.pending_parity is usable[0].other
        assert await rig.accepts(pair.pending)
    else:
        assert len(usable) == 2
    refused = await run_again(rig, rules)
    assert refused in ([], [Gate.TOO_SOON])  # too soon: it had been done
    assert await rig.is_whole()
    assert rig.leftovers() == []


async def run_again(rig: Any, rules: Rules) -> list[Gate]:
    """Do the next run, and return the gates that refused it.

    It waits for the server to notice that the killed rotator is gone, and for pools to replace their connections.
    """
    rotator = rig.rotator(rules=rules)
    while True:
        try:
            await rotator.apply(await rotator.plan())
        except RotationRefused as exc:
            gates = [objection.gate for objection in exc.objections]
            if not {Gate.IN_PROGRESS, Gate.OLD_SESSIONS}.issuperset(gates):
                return gates
            await asyncio.sleep(0.01)
        else:
            return []


async def moments(rig: Any, **options: Any) -> list[str]:
    code, steps = await drive(rig, **options)
    assert code == 0
    assert await rig.is_whole()
    return steps


async def test_the_driver_sees_every_step_of_a_rotation(rig: Any) -> None:
    steps = await moments(rig)
    marks = [name for name in steps if name in ("after replace", "after ALTER ROLE", "after SELECT session_user")]
    logins = ["after SELECT session_user"] * 2
    judged_twice = logins + logins  # by the plan, and again under the lock
    changed = ["after ALTER ROLE", "after SELECT session_user", "after replace"]
    assert marks == [*judged_twice, "after replace", *logins, *changed]  # judged once more after the announcement
    assert steps.index("announcing") < steps.index("announced") < steps.index("before ALTER ROLE")
    assert "after COMMIT" in steps[steps.index("after ALTER ROLE") :]


@pytest.mark.parametrize("refuse_new", [False, True], ids=["rotating", "undoing"])
async def test_killed_between_any_two_steps_the_next_run_makes_the_pair_whole(rig: Any, refuse_new: bool) -> None:
    start = rig.postgres.pair
    steps = await moments(rig, refuse_new=refuse_new)
    fatal = range(len(steps)) if PROOF else _reduced(steps)
    for number in fatal:
        await rig.postgres.server.set_passwords(start.odd, start.even)
        await rig.start(start, age=3600.0)
        code, lived = await drive(rig, fatal=number, refuse_new=refuse_new)
        assert (code, lived) == (-signal.SIGKILL, steps[: number + 1])
        await check_after_a_crash(rig)


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_with_vault_killed_between_any_two_steps_the_next_run_makes_the_pair_whole(vault_rig: Any) -> None:
    rig, start = vault_rig, vault_rig.postgres.pair
    steps = await moments(rig)
    assert steps.count("after request POST") == 3  # check of the token's rights, stage, promote
    for number in range(len(steps)) if PROOF else _reduced(steps):
        await rig.postgres.server.set_passwords(start.odd, start.even)
        await rig.start(start, age=3600.0)
        code, lived = await drive(rig, fatal=number)
        assert (code, lived) == (-signal.SIGKILL, steps[: number + 1])
        await check_after_a_crash(rig)


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_with_vault_killed_at_random_under_load_nothing_fails(vault_rig: Any) -> None:
    rig = vault_rig
    source = VaultSource.kv(str(rig.path), interval=0.2, start_spread=0, **rig.vault.options)
    dsn = f"{rig.postgres.dsn}?sslmode=disable"
    async with (
        aiopqr.create_pool(dsn, credentials=source, min_size=4, max_size=4, max_lifetime=0.5) as pool,
        Load(pool).running(2) as load,
    ):
        for _ in range(50 if PROOF else 3):
            while (await rig.rotator(rules=AT_ONCE).plan()).refusals:  # until the pool has replaced its connections
                await asyncio.sleep(0.02)
            await drive(rig, rules=AT_ONCE, killed_after=random.uniform(0.2, 3.0))
            await check_after_a_crash(rig, AT_ONCE)  # which also resumes what was staged a moment ago
    assert load.unexpected == []
    assert load.served > 50


def _reduced(steps: list[str]) -> list[int]:
    """The moments around what changes something: each rename or POST, the announcement, each ALTER and its COMMIT."""
    changing = (" replace", " request POST", " ALTER ROLE", "announced")
    chosen = [n for n, name in enumerate(steps) if name.endswith(changing)]
    committed = [n for n, name in enumerate(steps) if name.startswith("after COMMIT")]
    chosen += [min(n for n in committed if n > at) for at in chosen if "ALTER" in steps[at]]
    return sorted(set(chosen))
