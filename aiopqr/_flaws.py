"""Says why a text is unusable as a name, a password or a DSN, without ever showing the text."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def flaw(text: object) -> str | None:
    """Why a text is unusable as a name or a password, or None."""
    if not isinstance(text, str):
        return f"must be text, not {type(text).__name__}"
    if not text:
        return "must not be empty"
    if "\0" in text:
        return "must not contain a zero byte"  # because that ends a text in Postgres' protocol
    return None if text.isascii() or _is_unicode(text) else "is not valid Unicode text"


_WHITE_SPACE = {
    "\n": "a line feed",
    "\r": "a carriage return",
    "\t": "a tab",
    " ": "a space",
    "\ufeff": "a byte order mark",
}


WHITE_SPACE = "".join(_WHITE_SPACE)


def flaw_of_name(name: str) -> str | None:
    """Why a text is unusable as the name of an account, or None."""
    inner = next((char for char in name if char in "\r\n"), None)
    return flaw_of_ends(name, WHITE_SPACE) or (inner and f"must not contain {_WHITE_SPACE[inner]}")


def flaw_of_ends(text: str, unwanted: str) -> str | None:
    """Why a text must not begin or end as it does, or None. Often a file or an editor has added white space."""
    for char, place in ((text[-1], "end"), (text[0], "begin")):
        if char in unwanted:
            return f"must not {place} with white space ({_WHITE_SPACE[char]})"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_NO_DSN = "cannot be parsed: it must look like postgresql://host:port/database"
_ESCAPE = "If it is part of a name or a password, write @ as %40, / as %2F, ? as %3F and # as %23"


def flaw_of_dsn(dsn: str) -> str | None:
    """Why a DSN cannot be read, or would be misread, or None.

    A `/`, `?`, `#` or `@` in a password ends it too early. asyncpg takes the rest for a part of the address, which
    error messages show.
    """
    try:
        parts = urlsplit(dsn)
    except ValueError:  # it quotes the text
        return _NO_DSN
    if parts.scheme not in ("postgresql", "postgres"):
        return _NO_DSN
    user, at, hosts = parts.netloc.partition("@")
    hosts = hosts if at else user
    # If no database follows, `name:1234?x=y@host` looks like a port and a parameter.
    may_be_password = not parts.path and ":" in parts.netloc
    query = parts.query if may_be_password else "&".join(part.partition("=")[0] for part in parts.query.split("&"))
    if any("@" in text for text in (hosts, parts.path, parts.fragment, query)):
        return f"contains an @ that is not escaped. {_ESCAPE}"
    ports = [unquote(host.rpartition("]")[2].partition(":")[2]) for host in hosts.split(",")]
    if not all(port.isdecimal() for port in ports if port):
        return f"contains a port that is not a number. {_ESCAPE}"
    return None
