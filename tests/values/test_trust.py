"""What a server may ask for: libpq's two options, and the default that is stricter."""

from __future__ import annotations

import pytest

from aiopqr._trust import Binding, Channel, Method, Trust, take_trust
from aiopqr.errors import ConfigurationError

TCP, TLS, UNIX = Channel.TCP, Channel.TLS, Channel.UNIX
PLAIN, BOTH = {"SCRAM-SHA-256"}, {"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}


def allowed(trust: Trust, channel: Channel = TCP) -> set[str]:
    return {str(method) for method in Method if trust.objection(method, channel) is None}


ALL = {str(method) for method in Method}


def test_by_default_only_the_password_in_clear_over_tcp_is_refused() -> None:
    assert allowed(Trust.parse()) == allowed(Trust.parse("", "")) == ALL - {"password"}
    assert allowed(Trust.parse(), TLS) == allowed(Trust.parse(), UNIX) == ALL
    assert not Trust.parse().explicit


@pytest.mark.parametrize(
    ("require_auth", "methods"),
    [
        ("scram-sha-256", {"scram-sha-256"}),
        ("none", {"none"}),
        ("password", {"password"}),
        ("scram-sha-256,md5,password", {"scram-sha-256", "md5", "password"}),
        ("gss,none", {"gss", "none"}),
        ("!md5", ALL - {"md5", "password"}),
        ("!password", ALL - {"password"}),
        ("!password,!md5", ALL - {"password", "md5"}),
        ("!none", ALL - {"none", "password", "gss", "sspi"}),
    ],
)
def test_require_auth_is_libpqs(require_auth: str, methods: set[str]) -> None:
    trust = Trust.parse(require_auth)
    assert allowed(trust) == methods
    assert trust.explicit


def test_a_negation_takes_away_from_the_default() -> None:
    assert "password" in allowed(Trust.parse("!md5"), TLS)
    assert "password" not in allowed(Trust.parse("!password"), TLS)


@pytest.mark.parametrize(
    "require_auth",
    [
        "scram",
        "SCRAM-SHA-256",
        "md5,md5",
        "!md5,!md5",
        "md5,!password",
        "!",
        ",",
        "md5,",
        "gss",
        "sspi,md5",
        "all",
        "md5, none",
        " md5",
        "! md5",
    ],
)
def test_what_libpq_refuses_or_cannot_be_enforced_is_an_error(require_auth: str) -> None:
    with pytest.raises(ConfigurationError, match="require_auth"):
        Trust.parse(require_auth)


@pytest.mark.parametrize("channel_binding", ["Require", "yes", "tls-unique"])
def test_other_channel_bindings_are_an_error(channel_binding: str) -> None:
    with pytest.raises(ConfigurationError, match="channel_binding"):
        Trust.parse(None, channel_binding)


def test_insisting_on_channel_binding_leaves_nothing_but_scram() -> None:
    trust = Trust.parse(channel_binding="require")
    assert allowed(trust, TLS) == {"scram-sha-256"}
    assert trust.explicit


HASH = b"hash"


@pytest.mark.parametrize(
    ("offered", "channel", "binding", "verified", "mechanism"),
    [
        (BOTH, TLS, HASH, False, ("SCRAM-SHA-256-PLUS", "p")),
        (PLAIN, TLS, HASH, False, ("SCRAM-SHA-256", "y")),  # an honest server that could bind refuses this
        (PLAIN, TLS, None, False, ("SCRAM-SHA-256", "n")),
        (BOTH, TLS, None, True, ("SCRAM-SHA-256", "n")),
        (PLAIN, TCP, None, False, ("SCRAM-SHA-256", "n")),
        (BOTH, TCP, None, False, ("SCRAM-SHA-256", "n")),  # TLS ends at a tunnel, as it may for asyncpg's users
        (PLAIN, UNIX, None, False, ("SCRAM-SHA-256", "n")),
    ],
)
def test_channel_binding_is_used_where_it_can_be(
    offered: set[str], channel: Channel, binding: bytes | None, verified: bool, mechanism: tuple[str, str]
) -> None:
    assert Trust.parse().mechanism(offered, channel, binding, verified) == mechanism


@pytest.mark.parametrize("offered", [BOTH, PLAIN])
def test_channel_binding_can_be_disabled(offered: set[str]) -> None:
    trust = Trust.parse(channel_binding="disable")
    assert trust.mechanism(offered, TLS, HASH, False) == ("SCRAM-SHA-256", "n")


@pytest.mark.parametrize(
    ("option", "offered", "channel", "binding", "match"),
    [
        ("require", BOTH, TCP, None, "needs TLS"),
        ("require", PLAIN, TLS, HASH, "offers no SCRAM-SHA-256-PLUS"),
        ("require", BOTH, TLS, None, "no hash"),
        ("prefer", {"SCRAM-SHA-256-PLUS"}, TCP, None, "cannot use"),
        ("disable", {"SCRAM-SHA-256-PLUS"}, TLS, HASH, "cannot use"),
        # A man in the middle could choose such a certificate, to keep the proof from being bound to it.
        ("prefer", BOTH, TLS, None, "was not checked"),
    ],
)
def test_no_login_is_made_where_binding_was_to_be_and_cannot(
    option: str, offered: set[str], channel: Channel, binding: bytes | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        Trust.parse(channel_binding=option).mechanism(offered, channel, binding, verified=False)


DSN = "postgresql://db:5433,other/d?sslmode=require&application_name=a%20b"


@pytest.mark.parametrize("as_keyword", [True, False])
def test_both_are_taken_out_of_the_dsn(as_keyword: bool) -> None:
    dsn = DSN + "&require_auth=scram-sha-256%2Cnone&channel_binding=disable"
    args, kwargs = ((), {"dsn": dsn}) if as_keyword else ((dsn,), {})
    args, kwargs, trust = take_trust(args, kwargs, {})
    assert (args, kwargs) == (((), {"dsn": DSN}) if as_keyword else ((DSN,), {}))
    assert trust.methods == {Method.SCRAM, Method.NONE}
    assert trust.binding is Binding.DISABLE


def test_a_dsn_that_has_neither_is_left_as_it_is() -> None:
    for dsn in (DSN, "postgresql://db/d", "postgresql:///d?host=/tmp&x=require_auth", "?"):
        assert take_trust((dsn,), {"timeout": 1.0}, {}) == ((dsn,), {"timeout": 1.0}, Trust())
    assert take_trust(("postgresql://db/d?require_auth=none",), {}, {})[0] == ("postgresql://db/d",)


def test_arguments_count_before_the_dsn_and_the_dsn_before_the_environment() -> None:
    environment = {"PGREQUIREAUTH": "md5", "PGCHANNELBINDING": "require"}
    dsn = "postgresql://db/d?require_auth=password"
    _, kwargs, trust = take_trust((dsn,), {"require_auth": "none", "port": 1}, environment)
    assert kwargs == {"port": 1}
    assert trust.methods == {Method.NONE}
    assert trust.binding is Binding.REQUIRE
    assert take_trust((dsn,), {}, environment)[2].methods == {Method.PASSWORD}
    assert take_trust((), {}, environment)[2].methods == {Method.MD5}
