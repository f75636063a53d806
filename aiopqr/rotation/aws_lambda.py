"""A rotation function for AWS Secrets Manager, for the layout with a pair in one secret: :func:`handler`.

For each rotation, Secrets Manager calls it once per step, and repeats a step until it succeeds:

| step         | what it does                                                                                        |
|--------------|-----------------------------------------------------------------------------------------------------|
| createSecret | checks every gate, then stages a new password of one account as the version in AWSPENDING           |
| setSecret    | waits for pools to step aside, then gives the account that password, as a SCRAM verifier            |
| testSecret   | logs in with it over the applications' path                                                         |
| finishSecret | logs in with it, then moves AWSCURRENT to its version                                               |

Only createSecret can refuse. Once the password is staged, later steps finish the rotation, even if a gate would object
by then. A step that is repeated does nothing that has been done already. After a crash at any point, every password
that the database accepts is in AWSCURRENT or AWSPENDING, where :class:`~aiopqr.sources.SecretsManagerSource` finds it.
``aiopqr rotate --secret`` can finish such a rotation, too.

Its environment:

| variable                   | default          | what it is                                                           |
|----------------------------|------------------|----------------------------------------------------------------------|
| AIOPQR_ADMIN_SECRET        | ``masterarn``    | the secret (``username``, ``password``) of a role that may alter the |
|                            | of the secret    | accounts and is a member of pg_read_all_stats                        |
| AIOPQR_DSN                 | host, port and   | the applications' path, without user and password, such as           |
|                            | dbname of the    | ``postgresql://db/orders?sslmode=verify-full&sslrootcert=ca.pem``;   |
|                            | secret, with TLS | the default does not verify the server's certificate                 |
| AIOPQR_ADMIN_DSN           | AIOPQR_DSN       | the same for the admin role, if that must not go through a proxy     |
| AIOPQR_MAX_LIFETIME        | 1800             | the longest of all pools, in seconds                                 |
| AIOPQR_REFRESH_INTERVAL    | 60               | the longest of all pools, in seconds                                 |
| AIOPQR_MARGIN              | 120              | additional seconds, for clocks that differ and slow fetches          |
| AIOPQR_EXEMPT_APPLICATIONS | none             | application_names whose old sessions do not count, comma-separated   |
| AIOPQR_ANNOUNCE            | refresh interval | seconds from staging a password to changing it, in which pools step  |
|                            | + 10             | aside: fewer if the function's timeout leaves no room for them, so   |
|                            |                  | make the timeout at least half a minute longer than this             |

``examples/aws_lambda/README.md`` has the packaging and the IAM policies.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._login import connect_once
from ..credentials import Credential, CredentialPair, Endpoint
from ..errors import ConfigurationError, RotationError, without_frames
from ..options import non_negative
from ..sources.aws.source import SecretsManagerSource
from .announcing import announcement_left, usual_announcement
from .connects import APPLICATION_NAME
from .database import Database
from .gates import Rules
from .passwords import PasswordRule
from .plan import decide, renewed
from .stores.aws import CURRENT, PENDING, SecretsManagerStore
from .stores.aws_versions import Snapshot, staged_entries, stored

logger = logging.getLogger("aiopqr")

_VERIFY_TIMEOUT = 10.0  # a proxy may take a moment to notice a new password
_RESERVE = 25.0  # seconds of the function's time that setSecret reserves for the change itself


def handler(event: Mapping[str, Any], context: object) -> None:
    """The function that Lambda calls. Raises if the step cannot be done; Secrets Manager then calls it again."""
    # A context that is not Lambda's has no time limit.
    remaining = getattr(context, "get_remaining_time_in_millis", lambda: math.inf)()
    try:
        asyncio.run(_step(event, Settings.of(os.environ), remaining / 1000))
        return
    except Exception as exc:
        problem = without_frames(exc)
    raise problem


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the environment."""

    rules: Rules
    admin_secret: str | None = None
    dsn: str | None = None
    admin_dsn: str | None = None
    announce: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings. Raises :class:`ConfigurationError` if a number is expected and something else found."""

        def seconds(name: str, default: float) -> float:
            text = environment.get(name, "")
            try:
                return non_negative(name, float(text) if text else default)
            except ValueError:
                raise ConfigurationError(f"{name} must be a number of seconds") from None

        usual = Rules()
        exempt = environment.get("AIOPQR_EXEMPT_APPLICATIONS", "").split(",")
        rules = Rules(
            max_lifetime=seconds("AIOPQR_MAX_LIFETIME", usual.max_lifetime),
            refresh_interval=seconds("AIOPQR_REFRESH_INTERVAL", usual.refresh_interval),
            margin=seconds("AIOPQR_MARGIN", usual.margin),
            exempt_applications=frozenset(name.strip() for name in exempt if name.strip()),
        )
        dsn = environment.get("AIOPQR_DSN") or None
        return cls(
            rules=rules,
            admin_secret=environment.get("AIOPQR_ADMIN_SECRET") or None,
            dsn=dsn,
            admin_dsn=environment.get("AIOPQR_ADMIN_DSN") or dsn,
            announce=seconds("AIOPQR_ANNOUNCE", usual_announcement(rules)),
        )


async def _step(event: Mapping[str, Any], settings: Settings, remaining: float) -> None:
    try:
        secret_id, token, name = (event[key] for key in ("SecretId", "ClientRequestToken", "Step"))
    except (KeyError, TypeError):
        raise ConfigurationError(
            "the event has no SecretId, ClientRequestToken and Step: let Secrets Manager call this function"
        ) from None
    if name not in _STEPS:
        raise ConfigurationError(f"there is no step {name!r}")
    async with SecretsManagerStore(secret_id) as store:
        await store.run(_dispatch(_STEPS[name], _Rotation(store, token, settings, remaining), name))


async def _dispatch(step: Callable[[_Rotation], Awaitable[str]], rotation: _Rotation, name: str) -> None:
    if await rotation.is_finished():
        logger.info("%s of %r: version %s is already current", name, rotation.store.secret_id, rotation.token)
        return
    logger.info("%s of %r: %s", name, rotation.store.secret_id, await step(rotation))


class _Rotation:
    """One rotation: it makes the version ``token`` of a secret current. ``remaining`` is in seconds."""

    def __init__(self, store: SecretsManagerStore, token: str, settings: Settings, remaining: float) -> None:
        self.store = store
        self.token = token
        self.settings = settings
        self.remaining = remaining

    async def is_finished(self) -> bool:
        """Whether the token's version is current. Raises if it is neither current nor pending."""
        return (await self._snapshot()).current.id == self.token

    async def create(self) -> str:
        snapshot = await self._snapshot()
        if snapshot.pending is not None:
            return "a new password is already staged"
        secret = stored(snapshot, self.store.secret_id)
        database = await self._database(snapshot)
        async with database.exclusively(secret.pair):
            if (again := await self._snapshot()).revision != snapshot.revision:
                raise RotationError(f"secret {self.store.secret_id!r} was changed in the meantime")
            async with database.connected() as admin:
                facts = await database.gather(admin, secret)
            plan = decide(facts, self.settings.rules)
            plan.raise_for_refusals()
            new = Credential(plan.username, PasswordRule().generate())
            entries = staged_entries(again, secret, new, facts.now)
            await self.store.put(entries, PENDING, token=self.token, binary=snapshot.current.binary)
        return f"a new password of {plan.username!r} is staged"

    async def set(self) -> str:
        snapshot = await self._snapshot()
        if (pending := self._pending(snapshot)) is None:
            return "there is nothing to set"
        secret = stored(snapshot, self.store.secret_id)
        database = await self._database(snapshot)
        wait = min(announcement_left(secret, self.settings.announce), self.remaining - _RESERVE)
        if wait > 0:
            logger.info("%s: waiting %.0f s for pools to stop using %r", self.store, wait, pending.username)
            await asyncio.sleep(wait)
        async with database.altering(secret.pair) as admin:
            # If this run was suspended and the next rotation has begun by now, it must not alter anything.
            if (await self._snapshot()).revision != snapshot.revision:
                raise RotationError(f"secret {self.store.secret_id!r} was changed in the meantime")
            if (await database.login(pending)).accepted:  # renewing VALID UNTIL again would lengthen it
                return f"{pending.username!r} has its new password already"
            end = (await database.ends(admin, [pending.username])).get(pending.username)
            parity, now = secret.pair.pending_parity, await database.time(admin)
            changed = secret.changed_at(parity) if parity else None
            await database.alter(admin, pending, renewed(end, changed, now, self.settings.rules))
            await database.commit(admin)
        return f"{pending.username!r} has its new password"

    async def test(self) -> str:
        snapshot = await self._snapshot()
        database = await self._database(snapshot)
        if (pending := self._pending(snapshot)) is None:
            return await self._rehearse(database, snapshot)
        login = await database.login_patiently(pending, _VERIFY_TIMEOUT)
        if not login.accepted:
            raise RotationError(f"{pending.username!r} cannot log in with its new password: {login.text}")
        return f"{pending.username!r} logs in with its new password"

    async def finish(self) -> str:
        snapshot = await self._snapshot()
        if (pending := self._pending(snapshot)) is None:
            raise RotationError("there is nothing to finish: createSecret has staged no password")
        database = await self._database(snapshot)
        login = await database.login_patiently(pending, _VERIFY_TIMEOUT)
        if not login.accepted:
            raise RotationError(
                f"{pending.username!r} cannot log in with the password that would become current: {login.text}"
            )
        await self.store.move(CURRENT, to=self.token, away=snapshot.current.id)
        return f"the new password of {pending.username!r} is current"

    async def _rehearse(self, database: Database, snapshot: Snapshot) -> str:
        """The test that AWS requests when rotation is configured without an immediate rotation."""
        async with database.connected() as admin:
            facts = await database.gather(admin, stored(snapshot, self.store.secret_id))
        for parity, login in facts.logins.items():
            if not login.accepted:
                raise RotationError(f"{facts.username(parity)!r} cannot log in: {login.text}")
        refusals = "; ".join(str(objection) for objection in decide(facts, self.settings.rules).refusals)
        return f"both accounts log in, and a rotation would be refused now: {refusals}" if refusals else "all is well"

    async def _snapshot(self) -> Snapshot:
        snapshot = await self.store.snapshot()
        if self.token not in (snapshot.current.id, snapshot.pending_id):
            raise RotationError(f"version {self.token} of secret {self.store.secret_id!r} is no longer in AWSPENDING")
        return snapshot

    def _pending(self, snapshot: Snapshot) -> Credential | None:
        return stored(snapshot, self.store.secret_id).pair.pending

    async def _database(self, snapshot: Snapshot) -> Database:
        settings, endpoint = self.settings, CredentialPair.from_secret(snapshot.current.entries).endpoint
        admin = await _admin(settings.admin_secret or snapshot.current.entries.get("masterarn"))

        async def connect_admin() -> Any:
            # Advisory locks are per database, so all rotators must use the same one.
            return await _connect(settings.admin_dsn, endpoint, admin, database="postgres")

        async def connect_account(credential: Credential) -> Any:
            return await _connect(settings.dsn, endpoint, credential)

        return Database(connect_admin, connect_account)


_STEPS: dict[str, Callable[[_Rotation], Awaitable[str]]] = {
    "createSecret": _Rotation.create,
    "setSecret": _Rotation.set,
    "testSecret": _Rotation.test,
    "finishSecret": _Rotation.finish,
}


async def _admin(secret_id: object) -> Credential:
    if not isinstance(secret_id, str) or not secret_id:
        raise ConfigurationError("there is no admin secret: set AIOPQR_ADMIN_SECRET, or masterarn in the secret")
    source = SecretsManagerSource(secret_id, layout="alternating", start_spread=0.0)
    try:
        pair = await source.fetch()
    finally:
        await source.aclose()
    admin = pair[pair.active]
    assert admin is not None  # a pair always has its active account
    return admin


async def _connect(dsn: str | None, endpoint: Endpoint | None, credential: Credential, **options: Any) -> Any:
    if dsn is None:
        if endpoint is None or endpoint.host is None:
            raise ConfigurationError("nothing says where the database is: set AIOPQR_DSN, or host in the secret")
        place = {"host": endpoint.host, "port": endpoint.port, "database": endpoint.database, "ssl": "require"}
        options = {**{key: value for key, value in place.items() if value is not None}, **options}
    user, password = credential.username, credential.password
    return await connect_once(dsn, user=user, password=password, application_name=APPLICATION_NAME, **options)
