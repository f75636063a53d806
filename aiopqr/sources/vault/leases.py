"""Dynamic roles: Vault creates an account for each lease, and two overlapping leases make the pair.

A lease is renewed after about half of its time. Sooner or later its maximum TTL cuts a renewal short. Then the account
is replaced by a new one while about half a lease remains, which is the time for pools to move over. The two accounts
are never replaced in the same fetch. The lease of a replaced account is not revoked, since pools may still use it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ...credentials import Credential, CredentialPair, Parity
from ..trouble import Trouble
from .client import VaultClient
from .errors import VaultError

logger = logging.getLogger("aiopqr")

_CUT_SHORT = 0.75  # a renewal for less than this share of a whole lease has been cut short by the maximum TTL
_SOONEST = 0.1


@dataclass(slots=True)
class _Lease:
    """One account and its lease. Times are on the monotonic clock, except for the credential's expiry."""

    id: str
    credential: Credential
    full: float  # the length of a whole lease, in seconds
    is_last: bool  # whether another renewal would gain nothing
    ends_at: float
    act_at: float


class LeaseReader:
    """Holds two leases of one role. Its methods block."""

    def __init__(self, role: str, mount: str) -> None:
        self._role = role
        self._mount = mount.strip("/")
        self._leases: dict[Parity, _Lease] = {}
        self._old: list[_Lease] = []
        self._due = 0.0
        self._pid = os.getpid()
        self._has_warned = False

    def __repr__(self) -> str:
        return f"dynamic role, {self._mount}: {self._role}"

    def read(self, client: VaultClient) -> CredentialPair:
        """The pair. Renews leases that are due, and replaces those that have ended or soon will."""
        if self._pid != os.getpid():  # the leases belong to the parent of this forked process
            self._leases, self._old, self._pid = {}, [], os.getpid()
        now = time.monotonic()
        # An early call may mean that an account is refused. Renewing its lease shows whether the lease still exists.
        is_early = now < self._due
        is_replaced = False
        for parity, lease in sorted(self._leases.items(), key=lambda item: item[1].ends_at):
            if not lease.is_last and (is_early or now >= lease.act_at):
                self._renew(client, lease)
            if not lease.is_last or now < lease.act_at or lease.ends_at <= now:
                continue
            if is_replaced:  # never replace both at once
                lease.act_at = now + min(lease.ends_at - now, lease.full / 2) / 6
            else:
                self._take(client, parity)
                is_replaced = True
        now = time.monotonic()
        for parity in Parity:
            if parity not in self._leases or self._leases[parity].ends_at <= now:
                self._take(client, parity)
        self._old = [lease for lease in self._old if lease.ends_at > now]
        now = time.monotonic()
        refresh_in = max(min(lease.act_at for lease in self._leases.values()) - now, _SOONEST)
        # With tolerance, since the refresher may call a little early. It also calls when the token is to be renewed.
        self._due = now + min(refresh_in, client.due_in) / 2
        odd, even = (self._leases[parity].credential for parity in Parity)
        return CredentialPair(odd, even, refresh_in=refresh_in)

    def max_ttl(self, client: VaultClient) -> float:
        """The longest time, in seconds from now, for which Vault renews a lease. Renews one of ours to find out."""
        lease = next(iter(self._leases.values()))
        body = {"lease_id": lease.id, "increment": 10 * 365 * 86400}
        return float(client.ask("POST", "sys/leases/renew", body)["lease_duration"])

    def close(self, client: VaultClient) -> None:
        """Revoke all leases. Stops at the first network error."""
        leases, self._leases, self._old = [*self._leases.values(), *self._old], {}, []
        self._due = 0.0
        if self._pid != os.getpid():
            return
        now = time.monotonic()
        error: VaultError | None = None
        for lease in leases:
            try:
                if lease.ends_at > now:
                    client.ask("POST", "sys/leases/revoke", {"lease_id": lease.id})
            except VaultError as exc:
                if exc.trouble is Trouble.NETWORK:
                    raise
                if exc.trouble is not Trouble.NOT_FOUND:
                    error = exc
        if error:
            raise error

    def _take(self, client: VaultClient, parity: Parity) -> None:
        """Get a new account for this half of the pair."""
        asked = time.monotonic()
        answer = client.ask("GET", f"{self._mount}/creds/{self._role}")
        seconds = float(answer["lease_duration"])
        credential = _credential(answer["data"]["username"], answer["data"]["password"], seconds, asked)
        if parity in self._leases:
            self._old.append(self._leases[parity])
        self._leases[parity] = _Lease(
            answer["lease_id"],
            credential,
            full=seconds,
            is_last=not answer["renewable"],
            ends_at=asked + seconds,
            act_at=asked + _half(seconds),
        )

    def _renew(self, client: VaultClient, lease: _Lease) -> None:
        """Renew a lease, and note whether another renewal would help."""
        asked = time.monotonic()
        try:
            seconds = float(client.ask("POST", "sys/leases/renew", {"lease_id": lease.id})["lease_duration"])
        except VaultError as exc:
            if exc.trouble is Trouble.NOT_FOUND:  # somebody revoked it, or Vault has lost it
                lease.ends_at = asked
            elif exc.trouble in (Trouble.DENIED, Trouble.INVALID):
                lease.is_last = True  # replace it instead of renewing it
                if not self._has_warned:
                    logger.warning("%s; replacing leases instead. Allow update on sys/leases/renew", exc)
                self._has_warned = True
            else:
                raise
            return
        old = lease.credential
        lease.credential = _credential(old.username, old.password.reveal(), seconds, asked)
        lease.ends_at = asked + seconds
        lease.is_last = seconds < _CUT_SHORT * lease.full
        # A lease that was due and has been cut short is replaced in this fetch.
        lease.act_at = min(lease.act_at if lease.is_last else math.inf, asked + _half(seconds))


def _credential(username: str, password: str, seconds: float, asked: float) -> Credential:
    """A credential that expires with its lease. To be safe, count the lease from when we asked for it."""
    left = seconds - (time.monotonic() - asked)
    return Credential(username, password, expires_at=datetime.now(UTC) + timedelta(seconds=left), ends_sessions=True)


def _half(seconds: float) -> float:
    """About half of a lease's length, with jitter, since the instances of a fleet start together."""
    return seconds * random.uniform(0.4, 0.5)
