"""Works out the SQL that gives the two accounts of an application what they need. Pure: states in, changes out.

Both are members of one owner role, can log in, and act as the owner (by the setting ``role``), so what either creates
belongs to both. Both have copies of the owner's settings, since Postgres applies a role's settings only when that role
itself logs in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..._login import verifier
from ...credentials import Secret
from ...rotation.sql import identifier, literal

#: Settings of a role by database ("" for all databases), then by name.
Settings = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Membership:
    """A membership in a role. Before Postgres 16, any member may SET ROLE, and INHERIT is the member's attribute."""

    inherits: bool = True
    may_set: bool = True


@dataclass(frozen=True, slots=True)
class Role:
    """A role, as in the catalog."""

    name: str
    can_login: bool = True
    inherits: bool = True
    valid_until: datetime | None = None
    connection_limit: int = -1
    is_superuser: bool = False
    bypasses_row_security: bool = False
    memberships: Mapping[str, Membership] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One change: what it is in words, and its SQL. ``secret`` is the password that the SQL sets, as a verifier."""

    text: str
    template: str
    secret: Secret | None = None

    @property
    def shown(self) -> str:
        """The SQL without secrets, to print."""
        return self.template.replace("{verifier}", "<a SCRAM-SHA-256 verifier>")

    def sql(self) -> str:
        """The SQL to run."""
        return self.template.replace("{verifier}", verifier(self.secret.reveal()) if self.secret else "")


def changes(
    owner: Role,
    accounts: Mapping[str, Role | None],
    passwords: Mapping[str, Secret],
    *,
    version: int,
) -> Iterator[Change]:
    """The changes that make ``accounts`` two equal members of ``owner``; none if they already are.

    ``accounts`` has None for an account to be created, which gets its password from ``passwords``, if that has one.
    ``version`` is the server's major version.
    """
    for name, role in accounts.items():
        if role is None:
            yield _create(name, passwords.get(name))
            role = Role(name)
        else:
            yield from _attributes(role)
        yield from _membership(role, owner.name, version)
        yield from _settings(role, owner)


def differences(owner: Role, accounts: Iterable[Role]) -> Iterator[str]:
    """Differences between the accounts that only a person can resolve. They are reported, and not changed."""
    odd, even = accounts
    for label, value, lacks in (
        ("is a member of", _other_memberships, "is not"),
        ("has the setting", _other_settings, "does not"),
    ):
        mine, theirs = value(odd, owner), value(even, owner)
        for holder, other, only in ((odd, even, mine - theirs), (even, odd, theirs - mine)):
            for item in sorted(only):
                yield f"{holder.name!r} {label} {item}, but {other.name!r} {lacks}"
    if odd.connection_limit != even.connection_limit:
        limits = f"{odd.connection_limit} for {odd.name!r}, {even.connection_limit} for {even.name!r}"
        yield f"the connection limits differ: {limits}"


def _create(name: str, password: Secret | None) -> Change:
    clause = " PASSWORD '{verifier}'" if password else ""
    text = f"create {name!r}" + ("" if password else ", without a password, so nobody can log in with it yet")
    return Change(text, f"CREATE ROLE {identifier(name)} LOGIN{clause}", password)


def _attributes(role: Role) -> Iterator[Change]:
    name = identifier(role.name)
    if not role.can_login:
        yield Change(f"let {role.name!r} log in", f"ALTER ROLE {name} LOGIN")
    if not role.inherits:
        yield Change(f"let {role.name!r} inherit the privileges of its owner role", f"ALTER ROLE {name} INHERIT")


def _membership(role: Role, owner: str, version: int) -> Iterator[Change]:
    found = role.memberships.get(owner)
    options = " WITH INHERIT TRUE, SET TRUE" if version >= 16 else ""
    if found is None:
        text = f"make {role.name!r} a member of {owner!r}"
    elif version >= 16 and not (found.inherits and found.may_set):
        text = f"let {role.name!r} inherit the privileges of {owner!r}, and act as it"
    else:
        return
    yield Change(text, f"GRANT {identifier(owner)} TO {identifier(role.name)}{options}")


def _settings(role: Role, owner: Role) -> Iterator[Change]:
    if role.settings.get("", {}).get("role") != owner.name:
        text = f"make {owner.name!r} the owner of what {role.name!r} creates"
        yield Change(text, f"ALTER ROLE {identifier(role.name)} SET role = {literal(owner.name)}")
    for database, wanted in sorted(owner.settings.items()):
        for setting, value in sorted(wanted.items()):
            if setting == "role" or role.settings.get(database, {}).get(setting) == value:
                continue
            place = f" IN DATABASE {identifier(database)}" if database else ""
            where = f" in database {database!r}" if database else ""
            # FROM CURRENT takes the text as it is, whereas `SET search_path = …` would parse a list. The value that was
            # set for that must not stay in effect for the statements that follow.
            yield Change(
                f"copy the setting {setting}{where} from {owner.name!r} to {role.name!r}",
                f"SELECT set_config({literal(setting)}, {literal(value)}, true); "
                f"ALTER ROLE {identifier(role.name)}{place} SET {_parameter(setting)} FROM CURRENT; "
                f"SET LOCAL {_parameter(setting)} TO DEFAULT",
            )


def _other_memberships(role: Role, owner: Role) -> set[str]:
    return {repr(name) for name in role.memberships if name != owner.name}


def _other_settings(role: Role, owner: Role) -> set[str]:
    return {
        f"{setting} = {json.dumps(value)}" + (f" in database {database!r}" if database else "")
        for database, values in role.settings.items()
        for setting, value in values.items()
        if setting != "role" and owner.settings.get(database, {}).get(setting) != value
    }


def _parameter(name: str) -> str:
    """Quote a setting's name, part by part, since it cannot be quoted as a whole."""
    return ".".join(identifier(part) for part in name.split("."))


STATE = """
SELECT r.rolname, r.rolcanlogin, r.rolinherit, r.rolconnlimit, r.rolsuper, r.rolbypassrls,
       CASE WHEN r.rolvaliduntil < 'infinity' THEN r.rolvaliduntil END AS valid_until,
       coalesce((SELECT jsonb_object_agg(coalesce(d.datname, ''), to_jsonb(s.setconfig)) FROM pg_db_role_setting s
                 LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setrole = r.oid), '{}') AS settings,
       coalesce((SELECT jsonb_agg(to_jsonb(m) || jsonb_build_object('of', o.rolname)) FROM pg_auth_members m
                 JOIN pg_roles o ON o.oid = m.roleid WHERE m.member = r.oid), '[]') AS memberships
FROM pg_roles r WHERE r.rolname = ANY ($1)
"""


def role_of(row: Mapping[str, Any]) -> Role:
    """Make a role from a row of :data:`STATE`."""
    memberships: dict[str, Membership] = {}
    for member in json.loads(row["memberships"]):  # several grantors may each have granted a part
        before = memberships.get(member["of"], Membership(False, False))
        memberships[member["of"]] = Membership(
            before.inherits or member.get("inherit_option", True), before.may_set or member.get("set_option", True)
        )
    return Role(
        name=row["rolname"],
        can_login=row["rolcanlogin"],
        inherits=row["rolinherit"],
        valid_until=row["valid_until"],
        connection_limit=row["rolconnlimit"],
        is_superuser=row["rolsuper"],
        bypasses_row_security=row["rolbypassrls"],
        memberships=memberships,
        settings={
            database: dict(entry.split("=", 1) for entry in entries)
            for database, entries in json.loads(row["settings"]).items()
        },
    )
