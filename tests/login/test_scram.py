"""SCRAM-SHA-256 against the RFC, an independent server side, and arbitrary input."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopqr._login import scram

# RFC 7677, section 3. Its client names the user, as PostgreSQL's clients need not.
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
PENCIL = scram.derive("pencil", SALT, 4096)


def test_keys_match_rfc_7677() -> None:
    auth = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,"
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    signature = scram.signature_of(PENCIL.stored_hmac, auth)
    proof = bytes(a ^ b for a, b in zip(PENCIL.client, signature, strict=True))
    assert base64.b64encode(proof) == b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert (
        base64.b64encode(scram.signature_of(PENCIL.server_hmac, auth))
        == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )


def test_a_verifier_has_postgres_form_and_its_own_salt() -> None:
    one, two = scram.verifier("pencil"), scram.verifier("pencil")
    assert one != two
    assert one.startswith("SCRAM-SHA-256$4096:")
    fixed = scram.verifier("pencil", salt=SALT)
    stored = base64.b64encode(hashlib.sha256(PENCIL.client).digest()).decode()
    server = base64.b64encode(PENCIL.server).decode()
    assert fixed == f"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${stored}:{server}"


@pytest.mark.parametrize("iterations", [0, -1, scram.MAX_ITERATIONS + 1])
def test_a_verifier_refuses_iterations_out_of_bounds(iterations: int) -> None:
    with pytest.raises(ValueError, match="iterations"):
        scram.verifier("pencil", iterations=iterations)


def test_keys_are_never_shown() -> None:
    shown = f"{PENCIL} {PENCIL!r}"
    for key in (PENCIL.client, PENCIL.stored, PENCIL.server):
        assert repr(key) not in shown
    assert shown == "Keys() Keys()"


def test_a_password_that_is_no_text_is_refused_without_being_quoted() -> None:
    with pytest.raises(ValueError, match="not valid Unicode") as caught:
        scram.derive("hunter2\ud800", SALT, 1)
    assert caught.value.__suppress_context__
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("plain ascii \x07", "plain ascii \x07"),  # ASCII is never touched, controls included
        ("I\u00adX\u00e9", "IX\u00e9"),  # the soft hyphen vanishes
        ("\u00aa", "a"),  # NFKC
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),  # a non-ASCII space becomes a space
        ("a\u200bb\u00e9", "a bé"),  # and so does U+200B, as in libpq and unlike asyncpg
        ("\u00ad", "\u00ad"),  # nothing left: as it stands
        ("\u00e9\x07", "\u00e9\x07"),  # prohibited: as it stands
        ("\u0627\u0031", "\u0627\u0031"),  # bidirectional rules broken: as it stands
        ("\u0627a\u0628", "\u0627a\u0628"),
        ("\u0627\u0031\u0628", "\u0627\u0031\u0628"),
        ("\u0221", "\u0221"),  # unassigned in Unicode 3.2: as it stands
    ],
)
def test_saslprep_is_libpqs(text: str, prepared: str) -> None:
    assert scram.saslprep(text) == prepared


class Server:
    """The other half, written from RFC 5802, using nothing from scram.py but the verifier's text."""

    def __init__(self, verifier: str) -> None:
        _, parameters, keys = verifier.split("$")
        self.iterations, self.salt = parameters.split(":")
        self.stored, self.server = (base64.b64decode(key) for key in keys.split(":"))

    def first(self, client_first: bytes) -> bytes:
        assert client_first.startswith(b"n,,")
        self.bare = client_first[3:]
        nonce = dict(part.split(b"=", 1) for part in self.bare.split(b","))[b"r"]
        self.sent = nonce + b"SERVER"
        self.message = b"r=%s,s=%s,i=%s" % (self.sent, self.salt.encode(), self.iterations.encode())
        return self.message

    def final(self, client_final: bytes) -> bytes | None:
        without_proof, _, proof = client_final.rpartition(b",p=")
        assert without_proof == b"c=" + base64.b64encode(b"n,,") + b",r=" + self.sent
        auth = b",".join((self.bare, self.message, without_proof))
        signature = hmac.new(self.stored, auth, hashlib.sha256).digest()
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        if hashlib.sha256(key).digest() != self.stored:
            return None
        return b"v=" + base64.b64encode(hmac.new(self.server, auth, hashlib.sha256).digest())


def exchange(server: Server, password: str) -> bytes | None:
    client = scram.Exchange()
    challenge = client.challenged(server.first(client.first))
    final = server.final(client.final(scram.derive(password, challenge.salt, challenge.iterations)))
    if final is not None:
        client.verify(final)
    return final


# Without NUL, which a password may not contain: HMAC pads its key with it, so one more makes no difference.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(deadline=None)
@given(password=TEXT, salt=st.binary(min_size=1, max_size=32), iterations=st.integers(1, 50))
def test_any_password_proves_itself_to_a_server_with_its_verifier(password: str, salt: bytes, iterations: int) -> None:
    server = Server(scram.verifier(password, iterations=iterations, salt=salt))
    assert exchange(server, password) is not None


@settings(deadline=None)
@given(one=TEXT, other=TEXT)
def test_no_other_password_does(one: str, other: str) -> None:
    accepted = exchange(Server(scram.verifier(one, iterations=1)), other) is not None
    assert accepted == (scram.saslprep(one) == scram.saslprep(other))


def started() -> scram.Exchange:
    return scram.Exchange("rOprNGfwEbeRWgbNEkqO")


OURS = b"rOprNGfwEbeRWgbNEkqO"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"r=" + OURS,
        b"r=" + OURS + b"X,s=W22Z",
        b"s=W22Z,r=" + OURS + b"X,i=4096",
        b"r=" + OURS + b"X,s=W22Z,i=4096,",
        b"r=" + OURS + b"X,s=W22Z,i=4096\n",
        b"r=" + OURS + b"X,s=W22Z,i=4096,garbage",
        b"m=mandatory,r=" + OURS + b"X,s=W22Z,i=4096",
        b"r=" + OURS + b"X,s=,i=4096",
        b"r=" + OURS + b"X,s=W22,i=4096",
        b"r=" + OURS + b"X,s=W=2Z,i=4096",
        b"r=" + OURS + b"X,s=W2-_,i=4096",
        b"r=" + OURS + b"X,s=W22Z,i=0",
        b"r=" + OURS + b"X,s=W22Z,i=-1",
        b"r=" + OURS + b"X,s=W22Z,i=+1",
        b"r=" + OURS + b"X,s=W22Z,i=0x10",
        b"r=" + OURS + b"X,s=W22Z,i=\xd9\xa1",
        b"r=" + OURS + b",s=W22Z,i=4096",
        b"r=X" + OURS + b",s=W22Z,i=4096",
        b"r=" + OURS.lower() + b"X,s=W22Z,i=4096",
        b"r=" + OURS + b"\x7f,s=W22Z,i=4096",
        b"e=other-error",
    ],
)
def test_a_malformed_challenge_is_refused(message: bytes) -> None:
    with pytest.raises(scram.ScramError):
        started().challenged(message)


def test_optional_extensions_are_ignored() -> None:
    challenge = started().challenged(b"r=" + OURS + b"X,s=W22Z,i=1,x=y,z=")
    assert challenge == scram.Challenge(base64.b64decode("W22Z"), 1)


@pytest.mark.parametrize("iterations", [scram.MAX_ITERATIONS + 1, 10_000_000, 9_999_999_999])
def test_more_iterations_than_an_honest_server_asks_for_are_refused(iterations: int) -> None:
    with pytest.raises(scram.TooManyIterations, match=str(iterations)):
        started().challenged(b"r=" + OURS + b"X,s=W22Z,i=%d" % iterations)


def test_each_exchange_has_its_own_nonce() -> None:
    assert len({scram.Exchange().first for _ in range(100)}) == 100


def test_the_steps_are_refused_out_of_order() -> None:
    client = started()
    with pytest.raises(scram.ScramError):
        client.final(PENCIL)
    with pytest.raises(scram.ScramError):
        client.verify(b"v=AAAA")
    challenge = b"r=" + OURS + b"X,s=W22Z,i=1"
    client.challenged(challenge)
    with pytest.raises(scram.ScramError):
        client.challenged(challenge)
    client.final(PENCIL)
    with pytest.raises(scram.ScramError):
        client.final(PENCIL)


@pytest.mark.parametrize("final", [b"", b"v=", b"v=A", b"e=invalid-proof", b"x=y", b"v=AAAA\n"])
def test_a_malformed_final_message_is_refused(final: bytes) -> None:
    client = started()
    client.challenged(b"r=" + OURS + b"X,s=W22Z,i=1")
    client.final(PENCIL)
    with pytest.raises(scram.ScramError) as caught:
        client.verify(final)
    assert type(caught.value) is scram.ScramError


@pytest.mark.parametrize("signature", [b"AAAA", base64.b64encode(bytes(32))])
def test_a_wrong_signature_is_refused(signature: bytes) -> None:
    client = started()
    client.challenged(b"r=" + OURS + b"X,s=W22Z,i=1")
    client.final(PENCIL)
    with pytest.raises(scram.WrongSignature):
        client.verify(b"v=" + signature)


FUZZ = st.one_of(
    st.binary(max_size=200),
    st.from_regex(rb"r=rOprNGfwEbeRWgbNEkqO[!-~]{0,9},s=[A-Za-z0-9+/=]{0,9},i=[0-9]{0,4}"),
)


@given(message=FUZZ)
def test_no_challenge_does_anything_but_pass_or_raise_scram_error(message: bytes) -> None:
    try:
        challenge = started().challenged(message)
    except scram.ScramError:
        return
    assert 1 <= challenge.iterations <= scram.MAX_ITERATIONS
    assert challenge.salt


@given(message=st.one_of(st.binary(max_size=200), st.from_regex(rb"v=[A-Za-z0-9+/=]{0,60}")))
def test_no_final_message_is_taken_for_the_right_one(message: bytes) -> None:
    client = started()
    client.challenged(b"r=" + OURS + b"X,s=W22Z,i=1")
    client.final(PENCIL)
    with pytest.raises(scram.ScramError):
        client.verify(message)
