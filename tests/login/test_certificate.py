"""The hash that channel binding binds to, on certificates made by other software."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from aiopqr._login.certificate import end_point

RSA = rsa.generate_private_key(65537, 2048)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db")])


def certificate(key: Any, algorithm: Any, **kwargs: Any) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return builder.sign(key, algorithm, **kwargs).public_bytes(Encoding.DER)


def pss(algorithm: Any) -> Any:
    return padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.DIGEST_LENGTH)


@pytest.mark.parametrize("algorithm", [hashes.SHA224(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
@pytest.mark.parametrize("kind", ["RSA", "RSA-PSS", "ECDSA"])
def test_the_hash_is_that_of_the_signature(kind: str, algorithm: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ECDSA" else RSA
    options = {"rsa_padding": pss(algorithm)} if kind == "RSA-PSS" else {}
    der = certificate(key, algorithm, **options)
    assert end_point(der) == hashlib.new(algorithm.name, der).digest()


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()])
def test_a_signature_without_a_hash_binds_to_nothing(key: Any) -> None:
    assert end_point(certificate(key, None)) is None


SHA256 = certificate(RSA, hashes.SHA256())
PSS = certificate(RSA, hashes.SHA256(), rsa_padding=pss(hashes.SHA256()))


@pytest.mark.parametrize("old", ["04", "05"], ids=["MD5", "SHA-1"])
def test_weak_hashes_are_replaced_as_rfc_5929_says(old: str) -> None:
    # Nobody signs with these any more, so the names of the algorithm are replaced, inside and outside.
    der = SHA256.replace(bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d0101" + old))
    assert der != SHA256
    assert end_point(der) == hashlib.sha256(der).digest()


@given(cut=st.integers(0, len(PSS)), junk=st.binary(max_size=20))
def test_nonsense_binds_to_nothing_or_to_a_hash_but_raises_nothing(cut: int, junk: bytes) -> None:
    for der in (PSS[:cut], PSS[:cut] + junk + PSS[cut + len(junk) :], junk):
        bound = end_point(der)
        assert bound is None or len(bound) in (28, 32, 48, 64)
