"""Writes the secret that a service under test reads, the way a rotator does: all of it or nothing."""

from __future__ import annotations

import json
from pathlib import Path

from aiopqr import CredentialPair, Parity


def write_secret(path: Path, pair: CredentialPair) -> None:
    keys = {"active_credential": str(pair.active)}
    for parity in Parity:
        account = pair[parity]
        assert account is not None
        keys |= {f"{parity}_username": account.username, f"{parity}_password": account.password.reveal()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(keys))
    new.replace(path)
