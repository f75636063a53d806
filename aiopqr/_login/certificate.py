"""Computes the hash of a server's certificate to which SCRAM-SHA-256-PLUS binds (`tls-server-end-point`, RFC 5929).

The hash function is that of the certificate's own signature, which Python's ssl module does not reveal. Reading that
one field takes 30 lines of DER parsing, so channel binding works even if `cryptography` is not installed.
"""

from __future__ import annotations

import hashlib

# Object identifiers in DER. SHA-256 is used instead of MD5 and SHA-1, as RFC 5929 requires.
_RSA = bytes.fromhex("2a864886f70d0101")
_HASHES = {
    _RSA + b"\x04": "sha256",  # md5WithRSAEncryption
    _RSA + b"\x05": "sha256",  # sha1WithRSAEncryption
    _RSA + b"\x0b": "sha256",
    _RSA + b"\x0c": "sha384",
    _RSA + b"\x0d": "sha512",
    _RSA + b"\x0e": "sha224",
    bytes.fromhex("2a8648ce3d0401"): "sha256",  # ecdsa-with-SHA1
    bytes.fromhex("2a8648ce3d040301"): "sha224",
    bytes.fromhex("2a8648ce3d040302"): "sha256",
    bytes.fromhex("2a8648ce3d040303"): "sha384",
    bytes.fromhex("2a8648ce3d040304"): "sha512",
    bytes.fromhex("2b0e03021a"): "sha256",  # sha1, in RSA-PSS parameters
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
    bytes.fromhex("608648016503040204"): "sha224",
}
_PSS = _RSA + b"\x0a"


def end_point(certificate: bytes) -> bytes | None:
    """The hash of a certificate in DER; None if its signature does not name a hash function, as with Ed25519."""
    try:
        body = _inside(certificate)
        algorithm = _inside(body[_size(body) :])  # after tbsCertificate
        identifier = _inside(algorithm)
        if identifier == _PSS:  # the hash is in the parameters, in [0] hashAlgorithm; the default is SHA-1
            parameters = _inside(algorithm[_size(algorithm) :])
            identifier = _inside(_inside(_inside(parameters))) if parameters[:1] == b"\xa0" else _RSA + b"\x05"
        name = _HASHES.get(identifier)
    except IndexError:
        return None
    return hashlib.new(name, certificate).digest() if name else None


def _header(data: bytes) -> tuple[int, int]:
    """The lengths of an element's header and content."""
    length = data[1]
    if length < 0x80:
        return 2, length
    count = length & 0x7F
    if not 1 <= count <= 4:
        raise IndexError("an invalid length")
    return 2 + count, int.from_bytes(data[2 : 2 + count], "big")


def _size(data: bytes) -> int:
    return sum(_header(data))


def _inside(data: bytes) -> bytes:
    header, content = _header(data)
    if len(data) < header + content:
        raise IndexError("an element that ends too early")
    return data[header : header + content]
