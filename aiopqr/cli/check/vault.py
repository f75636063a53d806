"""Checks Vault for ``aiopqr check``: the token's rights, the times of rotations, and the length of leases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import starmap

from ...credentials import CredentialPair, Parity
from ...errors import SourceError
from ...rotation.errors import StoreError
from ...rotation.gates import Rules
from ...rotation.stores.vault import VaultStore
from ...sources.trouble import Trouble
from ...sources.vault.client import VaultClient
from ...sources.vault.errors import VaultError
from ...sources.vault.kv import KvReader
from ...sources.vault.leases import LeaseReader
from ...sources.vault.rights import in_policy, lacking
from ...sources.vault.source import EngineReader
from ...sources.vault.static_roles import StaticRolesReader
from .values import Finding, Level


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found in Vault."""

    pair: CredentialPair
    times: Mapping[Parity, datetime | None] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleTimes:
    """When Vault changes a static role's password: every ``period`` seconds, or on a schedule if that is None."""

    path: str
    changed_at: datetime
    next_at: datetime
    period: float | None


@contextlib.asynccontextmanager
async def looking(
    kv: tuple[str, str] | None, roles: tuple[str, str] | None, dynamic: str | None, mount: str, rules: Rules
) -> AsyncIterator[Looked]:
    """Read the pair as an application would, and check Vault. Leases are revoked when the block ends."""
    client, reader, paths = VaultClient(), _reader(kv, roles, dynamic, mount), _paths(kv, roles, dynamic, mount)

    def work() -> Looked:
        lacking = list(_rights(client, paths))
        try:
            pair = reader.read(client)
        except VaultError as exc:
            if exc.trouble is not Trouble.DENIED:
                raise
            raise SourceError("; ".join([str(exc), *(finding.advice for finding in lacking)])) from None
        found, times = lacking or [Finding(Level.OK, "Vault policy", "the token has all the permissions it needs")], {}
        if roles and pair.missing is None:
            role_times = [_times(client, f"{mount}/static-creds/{name}") for name in roles]
            times = {parity: one.changed_at for parity, one in zip(Parity, role_times, strict=True)}
            found += spacing(role_times, rules, datetime.now(UTC))
        elif isinstance(reader, LeaseReader):
            found += lease(reader.max_ttl(client), rules)
        return Looked(pair, times, tuple(found))

    def close() -> None:
        try:
            reader.close(client)
        finally:
            client.close()

    try:
        looked = await client.run_logged_in(work)
        if kv is not None:
            async with VaultStore(kv[1], mount=kv[0]) as store:
                with contextlib.suppress(StoreError):  # a secret in another layout does not record times
                    stored = await store.read()
                    looked = Looked(
                        looked.pair, {parity: stored.changed_at(parity) for parity in Parity}, looked.findings
                    )
        yield looked
    finally:
        await client.run(close)


def _reader(kv: tuple[str, str] | None, roles: tuple[str, str] | None, dynamic: str | None, mount: str) -> EngineReader:
    if kv is not None:
        return KvReader(kv[1], kv[0])
    return StaticRolesReader(*roles, mount) if roles else LeaseReader(dynamic or "", mount)


def _paths(
    kv: tuple[str, str] | None, roles: tuple[str, str] | None, dynamic: str | None, mount: str
) -> dict[str, str]:
    """The capability that an application needs for each path."""
    if kv is not None:
        return {f"{kv[0]}/{kind}/{kv[1]}": "read" for kind in ("data", "metadata")}
    if roles:
        return {f"{mount}/static-creds/{role}": "read" for role in roles}
    return {f"{mount}/creds/{dynamic}": "read", "sys/leases/renew": "update", "sys/leases/revoke": "update"}


def _rights(client: VaultClient, paths: Mapping[str, str]) -> Iterator[Finding]:
    """The rights that the token lacks."""
    missing = lacking(client, paths)
    if missing is None:
        text = "unknown: the token is not allowed to look up its own permissions (Vault's policy `default` allows this)"
        advice = "make sure that its policies contain: " + ", ".join(starmap(in_policy, paths.items()))
        yield Finding(Level.NOTE, "Vault policy", text, advice)
    for path, capability in (missing or {}).items():
        text = f"the token lacks {capability} on {path}"
        yield Finding(Level.PROBLEM, "Vault policy", text, f"add {in_policy(path, capability)}")


def _times(client: VaultClient, path: str) -> RoleTimes:
    answer = client.ask("GET", path)["data"]
    period = answer.get("rotation_period")
    return RoleTimes(
        path.replace("/static-creds/", "/rotate-role/"),
        datetime.fromisoformat(answer["last_vault_rotation"]),
        datetime.now(UTC) + timedelta(seconds=max(float(answer["ttl"]), 0.0)),
        float(period) if period else None,
    )


def spacing(roles: list[RoleTimes], rules: Rules, now: datetime) -> Iterator[Finding]:
    """Whether pools have enough time to fetch one role's new password before Vault changes the other's."""
    name, needed = "Vault rotation", rules.spacing
    for role in roles:
        if role.period is not None and role.period < rules.max_lifetime:
            text = (
                f"{role.path}: the period of {role.period:.0f} s is less than max_lifetime ({rules.max_lifetime:.0f} s)"
            )
            yield Finding(Level.WARNING, name, text, "increase rotation_period, or reduce max_lifetime")
    one, other = roles
    apart = abs((one.next_at - other.next_at).total_seconds())
    if one.period is None or one.period != other.period:
        text = f"the next changes are {apart:.0f} s apart, but the two periods differ"
        level, advice = Level.WARNING, "give both the same rotation_period, so that they stay apart"
        if one.period is None or other.period is None:
            text = f"the next changes, on Vault's own schedule, are {apart:.0f} s apart"
            level, advice = Level.NOTE, "make sure that the two schedules never come closer than that"
    else:
        apart = min(apart, abs(one.period - apart))
        text = f"the two roles are changed {apart:.0f} s apart"
        level, advice = Level.OK, ""
    if apart < needed:
        text += (
            f", less than max_lifetime + refresh interval + margin ({needed:.0f} s): pools could be left with two old "
            "passwords"
        )
        level, advice = Level.PROBLEM, _advice(one, other, needed, now)
    yield Finding(level, name, text, advice)


def _advice(one: RoleTimes, other: RoleTimes, needed: float, now: datetime) -> str:
    if one.period is None or one.period != other.period:
        return f"give both the same rotation_period of {2 * needed:.0f} s or more, half a period apart"
    if one.period < 2 * needed:
        return f"the period is too short to keep them apart: set rotation_period to {2 * needed:.0f} s or more"
    half = timedelta(seconds=one.period / 2)
    at = one.next_at - half if one.next_at - half > now else one.next_at + half
    moment = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"run `vault write -f {other.path}` at {moment}, to start a new period then"


def lease(seconds: float, rules: Rules) -> Iterator[Finding]:
    """Whether a lease lasts as long as a connection may."""
    name = "Vault lease"
    if seconds < rules.max_lifetime:
        text = f"a lease ends after {seconds:.0f} s at most, before max_lifetime ({rules.max_lifetime:.0f} s)"
        advice = "connections are replaced whenever a lease ends: increase the role's max_ttl"
        yield Finding(Level.WARNING, name, text, advice)
    else:
        yield Finding(Level.OK, name, f"a lease can be renewed for up to {seconds:.0f} s")
