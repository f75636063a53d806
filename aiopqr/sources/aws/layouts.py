"""The layouts in which AWS Secrets Manager can hold two accounts: takes the stages' values, returns a pair.

These functions are pure. They need neither AWS nor an event loop.

* **pair**: one secret with gopqr's five keys. AWSCURRENT is the pair. AWSPENDING, if it differs, holds the newer
  password of one account.
* **alternating**: AWS's own alternating-users rotation: one secret whose user flips between ``app`` and ``app_clone``.

  | moment                 | app in the database | app_clone | AWSCURRENT   | AWSPREVIOUS      | AWSPENDING   |
  |------------------------|---------------------|-----------|--------------|------------------|--------------|
  | before the first       | p0                  | -         | app/p0       | absent           | absent       |
  | after it               | p0                  | c1        | app_clone/c1 | app/p0           | -            |
  | second, createSecret   | p0                  | c1        | app_clone/c1 | app/p0           | app/p2       |
  | second, setSecret      | **p2**              | c1        | app_clone/c1 | app/p0, **dead** | app/p2       |
  | second, finishSecret   | p2                  | c1        | app/p2       | app_clone/c1     | -            |

  The stages swap at every rotation, so an account's parity is derived from its name, never from a stage.
* **two secrets**: one for each account, each rotated independently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...credentials import Credential, CredentialPair, Endpoint, Parity, parse_secret
from ...errors import InvalidSecret

CLONE = "_clone"  # the suffix that AWS's rotation gives the second account


@dataclass(frozen=True, slots=True)
class Account:
    """A secret with one account, as AWS's own rotation templates write it."""

    credential: Credential
    endpoint: Endpoint | None = None


Value = CredentialPair | Account


@dataclass(frozen=True, slots=True)
class Stages:
    """The values of one secret's stages; only AWSCURRENT always exists. ``staged_at`` is AWSPENDING's creation time."""

    current: Value
    previous: Value | None = None
    pending: Value | None = None
    staged_at: datetime | None = None


def parse(secret: str | bytes | Mapping[str, Any]) -> Value:
    """Parse the value of one version. Raises :class:`InvalidSecret`, which names keys but never shows a value."""
    try:
        return _parse(parse_secret(secret))
    except InvalidSecret as exc:
        problem = str(exc)
    del secret  # raised from here, so that the traceback holds no frame with the text
    raise InvalidSecret(problem)


def _parse(entries: Mapping[str, Any]) -> Value:
    pair = CredentialPair.from_secret(entries)
    return Account(pair.odd, pair.endpoint) if pair.is_single and pair.odd else pair


def from_pair(stages: Stages) -> CredentialPair:
    """The pair of a secret that holds both accounts."""
    pair = stages.current
    if not isinstance(pair, CredentialPair):
        raise InvalidSecret('layout "pair" needs the keys odd_username, odd_password, even_username and even_password')
    if isinstance(stages.pending, CredentialPair):
        newer = (stages.pending[parity] for parity in (pair.active.other, pair.active))
        pair = _with_pending(pair, newer, stages.staged_at)
    return pair


def from_alternating(stages: Stages) -> CredentialPair:
    """The pair of AWS's alternating-users rotation.

    If AWSCURRENT and AWSPREVIOUS name the same account (somebody set a value by hand, or AWS rotates a single user),
    the result is a single account, and the older password is tried last. The credentials of all stages are used, except
    the oldest if there are three passwords of a single user.
    """
    current, previous, pending = (
        value.credential if isinstance(value, Account) else None
        for value in (stages.current, stages.previous, stages.pending)
    )
    if current is None or not isinstance(stages.current, Account):
        raise InvalidSecret('layout "alternating" needs the keys username and password')
    second, older = (None, previous) if previous and previous.username == current.username else (previous, None)
    if older and pending and pending.username != current.username:
        second, pending = pending, None  # nobody knows which of the three work, so have all of them tried
    odd, even = _by_name(current, second)
    active = Parity.ODD if odd == current else Parity.EVEN
    is_single = even is None  # but a clone alone is a degraded pair: the account that it was cloned from is missing
    pair = CredentialPair(odd, even, active, endpoint=stages.current.endpoint, is_single=is_single)
    staged = _with_pending(pair, [pending], stages.staged_at)
    return staged if staged.pending else _with_pending(pair, [older])


def from_two(odd: Stages | None, even: Stages | None) -> CredentialPair:
    """The pair of two secrets, one for each account. If one is None, the pair is degraded."""
    accounts = {"odd": odd, "even": even}
    for key, stages in accounts.items():
        if stages and not isinstance(stages.current, Account):
            raise InvalidSecret(f'layout "two-secrets" needs the keys username and password ({key})')
    values = [stages.current for stages in (odd, even) if stages and isinstance(stages.current, Account)]
    pair = CredentialPair(
        odd=_own(odd),
        even=_own(even),
        endpoint=next((value.endpoint for value in values if value.endpoint), None),
    )
    pending = [s.pending.credential for s in (odd, even) if s and isinstance(s.pending, Account)]
    return _with_pending(pair, (newer for newer in pending if newer.username in _names(pair)))


def staged_in(pair: CredentialPair, newer: CredentialPair) -> list[Parity]:
    """The accounts whose password in ``newer`` differs from that in ``pair``."""
    return [parity for parity in Parity if _is_newer(pair, newer[parity], parity)]


def _is_newer(pair: CredentialPair, newer: Credential | None, parity: Parity) -> bool:
    own = pair[parity]
    return bool(newer and own and newer.username == own.username and newer.password != own.password)


def _with_pending(
    pair: CredentialPair, candidates: Iterable[Credential | None], staged_at: datetime | None = None
) -> CredentialPair:
    """``pair`` with the first candidate that can be its pending password, if there is one."""
    known = set(pair.credentials())
    for newer in candidates:
        if newer is None or newer in known:
            continue
        if newer.username in _names(pair) or None in (pair.odd, pair.even):
            return dataclasses.replace(pair, pending=newer, pending_since=staged_at)
    return pair


def _names(pair: CredentialPair) -> set[str]:
    return {account.username for account in (pair.odd, pair.even) if account}


def _by_name(one: Credential, other: Credential | None) -> tuple[Credential | None, Credential | None]:
    """Odd and even. A clone is always even, so that an account keeps its parity when the other one appears."""
    if other is None:
        return (None, one) if one.username.endswith(CLONE) else (one, None)
    odd, even = sorted((one, other), key=lambda account: (account.username.endswith(CLONE), account.username))
    return odd, even


def _own(stages: Stages | None) -> Credential | None:
    return stages.current.credential if stages and isinstance(stages.current, Account) else None
