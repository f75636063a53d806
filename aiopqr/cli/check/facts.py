"""Logs in with an account as an application would, and collects facts with SQL, in one read-only transaction.

All the SQL of ``aiopqr check`` is here. ``findings`` judges the results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..._login import DRIVER_ERRORS, answered, connect_once
from ...credentials import Credential
from ...errors import describe
from ...refusals import Verdict, classify

_ROLE = """
SELECT session_user::text AS session_user, current_user::text AS current_user, pg_backend_pid() AS pid,
       now() AS now, rolsuper AS superuser, rolcreaterole AS createrole, rolreplication AS replication,
       rolbypassrls AS bypassrls, rolconnlimit AS connection_limit,
       CASE WHEN rolvaliduntil < 'infinity' THEN rolvaliduntil END AS valid_until,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
       (SELECT ssl FROM pg_stat_ssl WHERE pg_stat_ssl.pid = pg_backend_pid()) AS tls,
       (SELECT count(*) FROM pg_shdepend d WHERE d.deptype = 'o' AND d.refobjid = r.oid
        AND d.refclassid = 'pg_authid'::regclass) AS owned
FROM pg_roles r WHERE rolname = session_user
"""

_MEMBERSHIPS = """
WITH RECURSIVE roles (oid) AS (
    SELECT m.roleid FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = session_user
    UNION SELECT m.roleid FROM pg_auth_members m JOIN roles ON roles.oid = m.member)
SELECT rolname FROM pg_roles JOIN roles USING (oid)
"""

# An account may do what any of its roles may, including the owner role that it acts as.
_POWERS = """
WITH RECURSIVE roles (oid) AS (
    SELECT m.roleid FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = session_user
    UNION SELECT m.roleid FROM pg_auth_members m JOIN roles ON roles.oid = m.member)
SELECT rolname, rolsuper AS superuser, rolbypassrls AS bypassrls, rolcreaterole AS createrole,
       rolreplication AS replication
FROM pg_roles JOIN roles USING (oid) WHERE rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication
"""

# About the other account, which may be unable to log in.
_OTHER = """
SELECT rolcanlogin AS can_login, now() AS now,
       CASE WHEN rolvaliduntil < 'infinity' THEN rolvaliduntil END AS valid_until
FROM pg_roles WHERE rolname = $1
"""

# Without `role`, which is compared separately.
_SETTINGS = """
SELECT name, setting FROM pg_settings WHERE source IN ('user', 'database user') AND name <> 'role'
"""

# What the account may do once it has logged in, including through memberships and PUBLIC.
_PRIVILEGES = """
WITH schemas AS (SELECT oid, nspname FROM pg_namespace
                 WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
SELECT p || ' on database ' || current_database() FROM unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) p
    WHERE has_database_privilege(current_database(), p)
UNION ALL SELECT p || ' on schema ' || quote_ident(nspname) FROM schemas, unnest(ARRAY['USAGE', 'CREATE']) p
    WHERE has_schema_privilege(schemas.oid, p)
UNION ALL SELECT p || ' on ' || format('%I.%I', nspname, relname)
    FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
      AND CASE WHEN p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') THEN has_any_column_privilege(c.oid, p)
               ELSE has_table_privilege(c.oid, p) END
UNION ALL SELECT p || ' on sequence ' || format('%I.%I', nspname, relname)
    FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace, unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) p
    WHERE relkind = 'S' AND CASE WHEN relkind = 'S' THEN has_sequence_privilege(c.oid, p) END
UNION ALL SELECT 'EXECUTE on ' || f.oid::regprocedure
    FROM pg_proc f JOIN schemas s ON s.oid = f.pronamespace WHERE has_function_privilege(f.oid, 'EXECUTE')
UNION ALL SELECT 'ownership of ' || format('%I.%I', nspname, relname)
    FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND pg_has_role(relowner, 'USAGE')
"""

_DEFAULT_PRIVILEGES = """
SELECT format('%s on new %s in %s', acl, defaclobjtype,
              CASE WHEN defaclnamespace = 0 THEN 'any schema' ELSE defaclnamespace::regnamespace::text END)
FROM pg_default_acl, unnest(defaclacl::text[]) acl
WHERE defaclrole = (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What was found with one account. If it could not log in, ``problem`` says why, and the rest is empty.

    ``authentication`` is the method that the server used, such as ``scram-sha-256`` or ``md5``: "" means none (trust),
    and None means unknown (before Postgres 16). ``proxied`` means that there is a pooling proxy in between.
    """

    username: str
    problem: str | None = None
    verdict: Verdict | None = None
    connected: bool = True
    unreachable: bool = False
    role: Mapping[str, Any] = field(default_factory=dict)
    authentication: str | None = None
    asked: str = ""  # what the server, or the proxy, asked for at the login
    proxied: bool = False
    memberships: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    privileges: frozenset[str] = frozenset()
    default_privileges: frozenset[str] = frozenset()
    powers: tuple[Mapping[str, Any], ...] = ()
    other: Mapping[str, Any] | None = None

    @property
    def logs_in(self) -> bool:
        """Whether the account can log in."""
        return self.problem is None

    @property
    def is_untried(self) -> bool:
        """Whether the attempt failed before the server judged the password."""
        judged = self.connected or (self.verdict is not None and self.verdict.blames_account)
        return not self.logs_in and not judged

    @property
    def valid_until(self) -> datetime | None:
        """When the password expires, or None."""
        value: datetime | None = self.role.get("valid_until")
        return value


async def look(dsn: str, credential: Credential, other: str = "", *, timeout: float = 10.0) -> AccountFacts:
    """Log in with ``credential`` as the applications do, and collect facts, also about the ``other`` account's role.

    Changes nothing.
    """
    asked: list[str] = []
    try:
        con = await connect_once(
            dsn,
            user=credential.username,
            password=credential.password,
            timeout=timeout,
            application_name="aiopqr-check",
            command_timeout=60.0,
            asked=asked.append,
        )
    except Exception as exc:
        verdict = classify(exc)
        unreachable = verdict is Verdict.OUTAGE and not answered(exc)
        return AccountFacts(credential.username, describe(exc), verdict, connected=False, unreachable=unreachable)
    try:
        async with con.transaction(readonly=True):  # so that a pooling proxy keeps using one server connection
            return replace(await _account(con, credential.username, other), asked="".join(asked))
    except DRIVER_ERRORS as exc:
        return AccountFacts(credential.username, describe(exc), classify(exc))
    finally:
        with contextlib.suppress(Exception):
            await con.close(timeout=5.0)


async def _account(con: Any, username: str, other: str) -> AccountFacts:
    role = dict(await con.fetchrow(_ROLE))
    authentication = None
    if con.get_server_version().major >= 16:
        identity = await con.fetchval("SELECT system_user")
        authentication = identity.partition(":")[0] if identity else ""

    async def texts(sql: str) -> frozenset[str]:
        return frozenset(row[0] for row in await con.fetch(sql))

    about = await con.fetchrow(_OTHER, other)
    # These texts are compared, so each account's own name, which has to differ, is masked.
    default_privileges = await texts(_DEFAULT_PRIVILEGES)
    return AccountFacts(
        username,
        role=role,
        authentication=authentication,
        # A pooling proxy has to send its clients its own process IDs.
        proxied=con.get_server_pid() != role["pid"],
        memberships=await texts(_MEMBERSHIPS),
        powers=tuple(dict(row) for row in await con.fetch(_POWERS)),
        other=dict(about) if about else None,
        settings={row["name"]: row["setting"] for row in await con.fetch(_SETTINGS)},
        privileges=await texts(_PRIVILEGES),
        default_privileges=frozenset(text.replace(role["current_user"], "<itself>") for text in default_privileges),
    )
