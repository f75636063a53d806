"""A certificate authority for one test server. It needs ``trustme``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import NotAvailable


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of the authority's certificate, and of the server's certificate and key."""

    ca: str
    cert: str
    key: str


def write_certificates(directory: Path) -> Certificates:
    """A new authority and a certificate for ``localhost`` and 127.0.0.1, in files in ``directory``."""
    try:
        import trustme
    except ImportError:
        raise NotAvailable("a server that speaks TLS needs a certificate: pip install trustme") from None
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    directory.mkdir(exist_ok=True)
    files = Certificates(*(str(directory / name) for name in ("ca.pem", "server.pem", "server.key")))
    Path(files.key).touch(0o600)
    authority.cert_pem.write_to_path(files.ca)
    certificate.private_key_pem.write_to_path(files.key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(files.cert, append=True)
    return files
