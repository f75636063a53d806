"""What a server may ask for at login: libpq's ``require_auth`` and ``channel_binding``, with a stricter default.

libpq and asyncpg send the password as plain text to any server that asks for it. So an attacker who answers instead of
the server, without TLS or with a certificate that is not checked, gets it. By default, aiopqr sends a password as plain
text only over TLS or a Unix socket. None of the rules depends on asyncpg; `handshake` consults them before it answers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from .errors import ConfigurationError


class Method(enum.StrEnum):
    """The authentication methods that a server may ask for, by libpq's names."""

    PASSWORD = "password"
    MD5 = "md5"
    GSS = "gss"
    SSPI = "sspi"
    SCRAM = "scram-sha-256"
    OAUTH = "oauth"
    NONE = "none"


class Binding(enum.StrEnum):
    """Whether the proof of the password is bound to the server's certificate."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"


class Channel(enum.StrEnum):
    """The channel of a login. TCP to this machine is not safer than other TCP: any local user may listen on a port."""

    TCP = "plain TCP"
    TLS = "TLS"
    UNIX = "a Unix socket"


@dataclass(frozen=True, slots=True)
class Trust:
    """What the server may ask for. The default is anything except the password as plain text without TLS."""

    methods: frozenset[Method] = frozenset(Method)
    plain_text_over_tcp: bool = False
    binding: Binding = Binding.PREFER
    explicit: bool = False  # the user has asked for it, so it is an error if it cannot be enforced

    @classmethod
    def parse(cls, require_auth: str | None = None, channel_binding: str | None = None) -> Trust:
        """Read the two options as libpq does. None and the empty text mean the default.

        Raises :class:`ConfigurationError` for values that libpq would reject too, and for what cannot be enforced.
        """
        try:
            binding = Binding(channel_binding or Binding.PREFER)
        except ValueError:
            names = ", ".join(Binding)
            raise ConfigurationError(f"channel_binding must be one of {names}, not {channel_binding!r}") from None
        if not require_auth:
            return cls(binding=binding, explicit=binding is Binding.REQUIRE)
        if not isinstance(require_auth, str):
            raise ConfigurationError(f"require_auth must be text, not {type(require_auth).__name__}")
        named = require_auth.split(",")  # libpq does not allow spaces either
        negated = [name.startswith("!") for name in named]
        if any(negated) and not all(negated):
            raise ConfigurationError("require_auth must name what is allowed, or negate (!) every method, but not both")
        try:
            methods = [Method(name.removeprefix("!")) for name in named]
        except ValueError:
            names = ", ".join(Method)
            raise ConfigurationError(f"require_auth must name methods of {names}, not {require_auth!r}") from None
        if len(set(methods)) < len(methods):
            raise ConfigurationError(f"require_auth names a method twice: {require_auth!r}")
        unfinished = {Method.GSS, Method.SSPI}
        if any(negated):
            forbidden = {*methods, *(unfinished if Method.NONE in methods else ())}
            return cls(frozenset(Method) - forbidden, binding=binding, explicit=True)
        if unfinished & set(methods) and Method.NONE not in methods:
            raise ConfigurationError(
                "require_auth cannot insist on gss or sspi: asyncpg does not say whether their exchange was completed"
            )
        return cls(frozenset(methods), Method.PASSWORD in methods, binding, explicit=True)

    def objection(self, method: Method, channel: Channel) -> str | None:
        """Why the server may not ask for this, or None if it may."""
        asked = "no authentication" if method is Method.NONE else f"{method} authentication"
        if self.binding is Binding.REQUIRE and method is not Method.SCRAM:
            return f"it asked for {asked}, and channel_binding=require allows only SCRAM-SHA-256-PLUS"
        if method not in self.methods:
            allowed, more = (",".join(sorted(methods)) for methods in (self.methods, {*self.methods, method}))
            return (
                f"it asked for {asked}, and require_auth allows only {allowed}. If this is intended, allow it with "
                f"require_auth={more}, also in the DSN, or in PGREQUIREAUTH"
            )
        if method is Method.PASSWORD and channel is Channel.TCP and not self.plain_text_over_tcp:
            return (
                "it asked for the password as plain text, without TLS. Use TLS (sslmode=verify-full), or allow it with "
                "require_auth=password if nobody can intercept the connection"
            )
        return None

    def mechanism(self, offered: set[str], channel: Channel, binding: bytes | None, verified: bool) -> tuple[str, str]:
        """Choose a SCRAM mechanism from those that a server offers. Returns it with the flag that explains the choice.

        ``binding`` is the hash of the server's certificate, or None; ``verified`` says that the certificate was checked
        to belong to the host. The flag is "p" with channel binding, "y" if only the server does not offer it, and "n"
        if this side does not bind. If an attacker has removed the server's offer, the server sees the "y" and refuses.

        Raises ValueError, with the reason, if there must not be a login.
        """
        plus, plain = SCRAM_PLUS in offered, SCRAM in offered
        possible = channel is Channel.TLS and binding is not None and self.binding is not Binding.DISABLE
        if plus and possible:
            return SCRAM_PLUS, "p"
        if self.binding is Binding.REQUIRE:
            if channel is not Channel.TLS:
                raise ValueError(f"channel_binding=require needs TLS, and the connection is {channel}")
            if not plus:
                raise ValueError("channel_binding=require, and it offers no SCRAM-SHA-256-PLUS")
            raise ValueError("channel_binding=require, and its certificate's signature names no hash to bind to")
        if not plain:
            raise ValueError("it offers only SCRAM-SHA-256-PLUS, which this login cannot use")
        if plus and channel is Channel.TLS and self.binding is Binding.PREFER and not verified:
            raise ValueError(
                "its certificate's signature names no hash to bind to, and the certificate was not checked: use "
                "sslmode=verify-full, or channel_binding=disable"
            )
        return SCRAM, "y" if possible else "n"


SCRAM = "SCRAM-SHA-256"
SCRAM_PLUS = "SCRAM-SHA-256-PLUS"
_KEYS = ("require_auth", "channel_binding")


def take_trust(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], environment: Mapping[str, str], default: str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Trust]:
    """Read both options from the arguments of a connect, and return the arguments without them.

    Keyword arguments take precedence over the DSN, and the DSN over PGREQUIREAUTH and PGCHANNELBINDING. The options are
    removed from the DSN, since asyncpg sends parameters that it does not know to the server. ``default`` is the
    require_auth if there is none. Raises :class:`ConfigurationError`.
    """
    rest = dict(kwargs)
    given = {key: rest.pop(key, None) for key in _KEYS}
    dsn = args[0] if args else rest.get("dsn")
    if isinstance(dsn, str) and "?" in dsn:
        base, _, query = dsn.partition("?")
        kept = []
        for part in query.split("&"):
            (key, value), *_ = parse_qsl(part, keep_blank_values=True) or [("", "")]
            if key not in _KEYS:
                kept.append(part)
            elif kwargs.get(key) is None:
                given[key] = value
        dsn = f"{base}?{'&'.join(kept)}" if kept else base
        if args:
            args = (dsn, *args[1:])
        else:
            rest["dsn"] = dsn
    for key, variable in zip(_KEYS, ("PGREQUIREAUTH", "PGCHANNELBINDING"), strict=True):
        if given[key] is None:
            given[key] = environment.get(variable)
    return args, rest, Trust.parse(given["require_auth"] or default, given["channel_binding"])
