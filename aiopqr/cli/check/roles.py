"""Judges what each account may do, and whether the other may do the same. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from ...rotation.words import counted, moment
from .facts import AccountFacts
from .values import CheckFacts, Finding, Level

_SHOWN = 5


def of_account(account: AccountFacts, facts: CheckFacts) -> Iterator[Finding]:
    role, name = account.role, account.username
    if role["session_user"] != name:
        text = f"after logging in as {name!r}, the session belongs to {role['session_user']!r}"
        advice = "a proxy probably maps users: configure it to keep the two accounts apart"
        yield Finding(Level.PROBLEM, "identity", text, advice)
    if role["superuser"]:
        advice = "use an ordinary role: whoever finds a superuser's password controls the server"
        yield Finding(Level.PROBLEM, "superuser", f"{name!r} is a superuser", advice)
    powers = [power for power in ("createrole", "replication", "bypassrls") if role[power]]
    if powers and not role["superuser"]:
        text = f"{name!r} has {', '.join(powers).upper()}"
        yield Finding(Level.WARNING, "powers", text, "revoke what the application does not need")
    for power in account.powers:
        level = Level.PROBLEM if power["superuser"] or power["bypassrls"] else Level.WARNING
        names = "superuser", "bypassrls", "createrole", "replication"
        may = ", ".join(name.upper() for name in names if power[name])
        text = (
            f"{name!r} is a member of {power['rolname']!r}, which has {may}, so the application effectively has it too"
        )
        yield Finding(level, "powers", text, "give the application its own owner role, without such powers")
    if account.valid_until:
        # Only every second rotation changes this account.
        soon = role["now"] + timedelta(seconds=2 * facts.rules.spacing) if "now" in role else None
        level = Level.PROBLEM if soon is None or account.valid_until < soon else Level.WARNING
        advice = "rotate both accounts before then: each rotation renews it (see `aiopqr rotate --valid-for`)"
        text = f"the password of {name!r} expires at {moment(account.valid_until)}"
        yield Finding(level, "VALID UNTIL", text, advice)
    # While one account is refused, the other has all connections; and a replacement needs one more.
    needed = facts.max_size + 1
    for whose, limit in ((f"{name!r}", role["connection_limit"]), ("the database", role["database_limit"])):
        if 0 <= limit < needed:
            text = f"{whose} may have {limit} connections, but one pool of {facts.max_size} needs up to {needed}"
            yield Finding(
                Level.PROBLEM, "connection limit", text, "raise it to (max_size + 1) times the number of instances"
            )
        elif limit >= 0:
            text = f"{whose} may have {limit} connections, enough for {limit // needed} pools of {facts.max_size}"
            yield Finding(
                Level.NOTE,
                "connection limit",
                text,
                "make sure that this is enough for all instances: each needs max_size + 1",
            )


def of_both(odd: AccountFacts, even: AccountFacts) -> Iterator[Finding]:
    yield from _acting(odd, even)
    for name, mine, theirs, advice in (
        ("memberships", odd.memberships, even.memberships, "grant the same roles to both"),
        (
            "privileges",
            odd.privileges,
            even.privileges,
            "grant to the role that both are members of, not to one account",
        ),
        ("default privileges", odd.default_privileges, even.default_privileges, "let both act as one owner role"),
        (
            "settings",
            _lines(odd.settings),
            _lines(even.settings),
            "`aiopqr setup` gives both the owner role's settings",
        ),
    ):
        differ = [f"only {odd.username!r}: {item}" for item in sorted(mine - theirs)]
        differ += [f"only {even.username!r}: {item}" for item in sorted(theirs - mine)]
        if differ:
            more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
            yield Finding(Level.PROBLEM, name, "; ".join(differ[:_SHOWN]) + more, advice)
        else:
            yield Finding(Level.OK, name, f"the same for both ({len(mine)})")
    if odd.role["connection_limit"] != even.role["connection_limit"]:
        limits = f"{odd.role['connection_limit']} and {even.role['connection_limit']}"
        text = f"{odd.username!r} and {even.username!r} have {limits}"
        yield Finding(Level.WARNING, "connection limits differ", text, "give both accounts the same limit")


def _acting(odd: AccountFacts, even: AccountFacts) -> Iterator[Finding]:
    roles = {account.role["current_user"] for account in (odd, even)}
    if len(roles) == 1:
        yield Finding(Level.OK, "ownership", f"what either creates belongs to {roles.pop()!r}")
    else:
        text = "each account owns what it creates, so the other one cannot alter or drop it"
        yield Finding(Level.WARNING, "ownership", text, "let both act as one owner role: `aiopqr setup` does this")
    for account in (odd, even):
        owned = account.role["owned"]
        if owned:
            text = f"{account.username!r} itself owns {counted(owned, 'object')}"
            yield Finding(
                Level.WARNING, "ownership", text, f"run REASSIGN OWNED BY {account.username} TO the owner role"
            )


def _lines(settings: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{name} = {value}" for name, value in settings.items())
