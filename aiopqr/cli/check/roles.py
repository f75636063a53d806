"""What each account may do, and whether the other may do the same. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from ...rotation.words import moment
from .facts import Account
from .values import Facts, Finding, Level

_SHOWN = 5


def of_account(account: Account, facts: Facts) -> Iterator[Finding]:
    role, name = account.role, account.username
    if role["session_user"] != name:
        text = f"the server says that {name!r} is {role['session_user']!r}"
        advice = "a proxy maps users: let it keep the two accounts apart"
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
        # Each account is changed by every second rotation only.
        soon = role["now"] + timedelta(seconds=2 * facts.rules.spacing) if "now" in role else None
        level = Level.PROBLEM if soon is None or account.valid_until < soon else Level.WARNING
        advice = "each rotation of the account renews it (`aiopqr rotate --valid-for`); rotate both before that"
        text = f"{name!r} cannot log in after {moment(account.valid_until)}"
        yield Finding(level, "VALID UNTIL", text, advice)
    # Each account alone, since while the other is refused it carries all; one more for a replacement.
    needed = facts.max_size + 1
    for whose, limit in ((f"{name!r}", role["connection_limit"]), ("the database", role["database_limit"])):
        if 0 <= limit < needed:
            text = f"{whose} may have {limit} connections, but one pool of {facts.max_size} needs up to {needed}"
            yield Finding(Level.PROBLEM, "connection limit", text, "raise it to (max_size + 1) times the instances")
        elif limit >= 0:
            text = f"{whose} may have {limit} connections, enough for {limit // needed} pools of {facts.max_size}"
            yield Finding(Level.NOTE, "connection limit", text, "count your instances: each needs max_size + 1")


def of_both(odd: Account, even: Account) -> Iterator[Finding]:
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
            yield Finding(Level.OK, name, f"equal ({len(mine)})")
    if odd.role["connection_limit"] != even.role["connection_limit"]:
        text = f"{odd.role['connection_limit']} and {even.role['connection_limit']}"
        yield Finding(Level.WARNING, "connection limits differ", text, "give both accounts the same limit")


def _acting(odd: Account, even: Account) -> Iterator[Finding]:
    roles = {account.role["current_user"] for account in (odd, even)}
    if len(roles) == 1:
        yield Finding(Level.OK, "ownership", f"what either creates belongs to {roles.pop()!r}")
    else:
        text = "each account owns what it creates, and the other one cannot alter or drop it"
        yield Finding(Level.WARNING, "ownership", text, "let both act as one owner role: `aiopqr setup` does this")
    for account in (odd, even):
        owned = account.role["owned"]
        if owned:
            text = f"{account.username!r} itself owns {owned} objects"
            yield Finding(Level.WARNING, "ownership", text, f"REASSIGN OWNED BY {account.username} TO the owner role")


def _lines(settings: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{name} = {value}" for name, value in settings.items())
