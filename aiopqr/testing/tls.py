"""A certificate authority for one test server. Needs ``trustme``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import NotAvailable


@dataclass(frozen=True, slots=True)
class Certificates:
    """The paths of the authority's certificate and of the server's certificate and key."""

    ca: str
    cert: str
    key: str


def write_certificates(directory: Path) -> Certificates:
    """Create an authority and a certificate for ``localhost`` and 127.0.0.1, as files in ``directory``."""
    try:
        import trustme
    except ImportError:
        raise NotAvailable("a server with TLS needs a certificate: pip install trustme") from None
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
