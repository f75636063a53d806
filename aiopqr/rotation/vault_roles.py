"""Rotates two static roles of Vault with gates: Vault changes the password, and the rotator decides when.

Vault's own rotation periods take no account of pools. Nothing is staged here: Vault changes the database and its own
store in one request, and recovers by itself from a crash in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import starmap
from typing import Any, Self, TypeVar, Unpack, cast

from ..credentials import Credential, CredentialPair, Parity
from ..sources.vault.client import VaultClient
from ..sources.vault.errors import VaultError
from ..sources.vault.reach import VaultOptions
from ..sources.vault.rights import in_policy, lacking
from .errors import RotationFailed, RotationUndone, StoreError
from .gates import Gate
from .plan import Plan, decide
from .rotator import Rotator
from .run import Step
from .stores.store import SecretStore, StoredSecret

logger = logging.getLogger("aiopqr")

_T = TypeVar("_T")


class VaultRoles:
    """Two static roles of a database engine as a rotator sees them: read as one secret, changed one at a time.

    The policy needs ``read`` on ``database/static-creds/ROLE`` and ``update`` on ``database/rotate-role/ROLE`` of both.
    The options are those of :class:`aiopqr.sources.VaultSource`.
    """

    def __init__(self, odd: str, even: str, *, mount: str = "database", **options: Unpack[VaultOptions]) -> None:
        self._names = {Parity.ODD: odd, Parity.EVEN: even}
        self._mount = mount.strip("/")
        self._client = VaultClient(**options)

    async def read(self) -> StoredSecret:
        """The two accounts, and when Vault changed their passwords. Raises :class:`StoreError`."""
        return await self._run(self._read)

    async def check_writable(self) -> None:
        """Raise :class:`StoreError` if the token may not make Vault change the passwords. Changes nothing."""
        await self._run(self._check_writable)

    async def rotate(self, parity: Parity) -> None:
        """Make Vault change one account's password now.

        If this raises :class:`StoreError`, Vault may still have changed it.
        """
        await self._run(lambda: self._client.ask("POST", self._rotate_path(parity), {}))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.run(self._client.close)

    def _rotate_path(self, parity: Parity) -> str:
        return f"{self._mount}/rotate-role/{self._names[parity]}"

    def _check_writable(self) -> None:
        missing = lacking(self._client, {self._rotate_path(parity): "update" for parity in Parity})
        if missing:
            raise StoreError(f"the token may not rotate: add {', '.join(starmap(in_policy, missing.items()))}")

    def _read(self) -> StoredSecret:
        (odd, odd_at), (even, even_at) = map(self._account, self._names.values())
        pair = CredentialPair(odd, even, Parity.EVEN if even_at > odd_at else Parity.ODD)
        return StoredSecret(pair, f"{odd_at} {even_at}", odd_at, even_at)

    def _account(self, role: str) -> tuple[Credential, datetime]:
        answer = self._client.ask("GET", f"{self._mount}/static-creds/{role}")["data"]
        changed_at = datetime.fromisoformat(answer["last_vault_rotation"])
        return Credential(answer["username"], answer["password"]), changed_at

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._client.run_logged_in(work)
        except VaultError as exc:
            problem = str(exc)
        raise StoreError(problem)


@dataclass(frozen=True, slots=True)
class RolePlan(Plan):
    """A plan whose steps are carried out by Vault."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What would be done, in words."""
        return (
            f"let Vault change the password of {self.username!r}",
            f"log in as {self.username!r} with the new one over the applications' path",
        )


class VaultRolesRotator(Rotator):
    """A :class:`Rotator` for passwords that Vault changes. It has ``roles`` and no store, and announces nothing."""

    def __init__(self, *, roles: VaultRoles, **options: Any) -> None:
        super().__init__(store=cast(SecretStore, roles), announce=0.0, **options)
        self._roles = roles

    async def plan(self, *, account: Parity | None = None, force: Iterable[Gate] = ()) -> Plan:
        """See :meth:`Rotator.plan`."""
        plan = await super().plan(account=account, force=force)
        return RolePlan(**{field.name: getattr(plan, field.name) for field in fields(plan)})

    async def _rotate(self, plan: Plan) -> datetime:
        parity, settings = plan.parity, self._options
        secret = await self._roles.read()
        async with self._database.exclusively(secret.pair) as guard:
            secret = await self._roles.read()
            facts = await self._database.gather(guard, secret)
            decide(facts, settings.rules, account=parity, forced=plan.forced).raise_for_refusals()
            settings.listener(Step.CHECKED)
            changed = await self._change(plan, secret)
            settings.listener(Step.ALTERED)
            credential, changed_at = changed.pair[parity], changed.changed_at(parity)
            assert credential is not None
            assert changed_at is not None
            login = await self._database.login_patiently(credential, settings.verify_timeout)
            if not login.accepted:
                raise RotationFailed(
                    f"Vault has changed the password of {plan.username!r}, but it does not work over the applications' "
                    f"path: {login.text}. Do not change the other account until it does."
                )
            settings.listener(Step.VERIFIED)
            return changed_at

    async def _change(self, plan: Plan, before: StoredSecret) -> StoredSecret:
        """Make Vault change the password, and return the roles after that. A request that fails may have changed it."""
        problem = ""
        try:
            await self._roles.rotate(plan.parity)
        except StoreError as exc:
            problem = str(exc)
            logger.warning("rotation: Vault failed to change the password of %r: %s", plan.username, problem)
        try:
            now = await self._roles.read()
        except StoreError as exc:
            found = f"it is unknown whether it did: {problem}" if problem else f"says that it did, but now fails: {exc}"
            raise RotationFailed(
                f"Vault was asked to change the password of {plan.username!r}, and {found}. Do not change the other "
                "account until `aiopqr check` says that this one can log in."
            ) from None
        credential = now.pair[plan.parity]
        assert credential is not None
        if credential != before.pair[plan.parity]:
            return now
        problem = problem or "it says that it did, but still shows the old one"
        login = await self._database.login(credential)
        if login.accepted:
            raise RotationUndone(
                f"Vault did not change the password of {plan.username!r}, and the old one still works: {problem}"
            )
        raise RotationFailed(
            f"Vault did not complete the change of {plan.username!r}: the password that it shows does not work "
            f"({login.text}): {problem}. Vault repairs this by itself; do not change the other account until this one "
            "can log in."
        )
