"""A rotation that kills itself by SIGKILL: ``crash_driver.py SETUP.json`` with the number of the moment to die at.

A moment is each call that leaves a trace outside the process, before and after it: a statement, a login, a write, a
rename. None of this is in the product: the driver wraps what the rotator is given, and the system's file calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import asyncpg

from aiopqr.credentials import Credential
from aiopqr.rotation import Rotator, run
from aiopqr.rotation.errors import RotationUndone
from aiopqr.rotation.gates import Rules
from aiopqr.rotation.stores.file import FileStore
from aiopqr.rotation.stores.vault import VaultStore


class Reaper:
    """Counts moments, prints each on standard output, and kills the process at the given one."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal = fatal
        self.count = 0

    def moment(self, name: str) -> None:
        print(name, flush=True)
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class Watched:
    """A connection whose every statement is a moment before and after."""

    def __init__(self, con: Any, reaper: Reaper) -> None:
        self._con = con
        self._reaper = reaper

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._con, name)
        if name not in ("execute", "fetch", "fetchval", "close"):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            what = " ".join(str(args[0]).split()[:2]) if args else name
            self._reaper.moment(f"before {what}")
            result = await value(*args, **kwargs)
            self._reaper.moment(f"after {what}")
            return result

        return call

    def transaction(self) -> Any:
        transaction, reaper = self._con.transaction(), self._reaper

        class Block:
            async def __aenter__(self) -> None:
                await transaction.__aenter__()

            async def __aexit__(self, *exc: Any) -> None:
                reaper.moment("before COMMIT")
                await transaction.__aexit__(*exc)
                reaper.moment("after COMMIT")

        return Block()


async def main(setup: dict[str, Any], fatal: int | None) -> None:
    reaper = Reaper(fatal)
    run._REFUSED_LOGINS = 2  # else the pauses between them are most of the test
    for name in ("fsync", "replace"):
        _watch(os, name, reaper)
    store: Any = FileStore(setup["path"])
    if setup["vault"]:  # at VAULT_ADDR, with VAULT_TOKEN
        import hvac.adapters

        store = VaultStore(setup["path"])
        _watch(hvac.adapters.RawAdapter, "request", reaper)
    known = (await store.read()).pair

    async def admin() -> Any:
        con = await asyncpg.connect(setup["admin_dsn"], user=setup["admin"], password=os.environ["ADMIN_PASSWORD"])
        return Watched(con, reaper)

    async def verify(credential: Credential) -> Any:
        if setup["refuse_new"] and credential not in (known.odd, known.even):
            raise asyncpg.InvalidPasswordError("password authentication failed")
        con = await asyncpg.connect(setup["dsn"], user=credential.username, password=credential.password.reveal)
        return Watched(con, reaper)

    rules = Rules(max_lifetime=setup["spacing"], refresh_interval=0.0, margin=0.0)
    rotator = Rotator(
        admin=admin,
        verify=verify,
        store=store,
        rules=rules,
        announce=0.3,
        on_announcing=lambda _: reaper.moment("announcing"),
        listener=lambda step: reaper.moment("announced") if step is run.Step.ANNOUNCED else None,
    )
    try:
        await rotator.apply(await rotator.plan())
    except RotationUndone:
        if not setup["refuse_new"]:
            raise


def _watch(owner: Any, name: str, reaper: Reaper) -> None:
    real = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        what = " ".join([name, *(str(arg) for arg in args[1:2] if name == "request")])
        reaper.moment(f"before {what}")
        result = real(*args, **kwargs)
        reaper.moment(f"after {what}")
        return result

    setattr(owner, name, call)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
