"""What makes a text unusable as a name or a password, in words that name the trouble and never show the text."""

from __future__ import annotations


def flaw(text: object) -> str | None:
    """What makes a text unusable as a name or password, in words that do not show it."""
    if not isinstance(text, str):
        return f"must be text, not {type(text).__name__}"
    if not text:
        return "must not be empty"
    if "\0" in text:
        return "must not contain a zero byte"  # which ends a text in Postgres' protocol
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
    """What makes a text unusable as the name of an account."""
    inner = next((char for char in name if char in "\r\n"), None)
    return edge(name, WHITE_SPACE) or (inner and f"must not contain {_WHITE_SPACE[inner]}")


def edge(text: str, unwanted: str) -> str | None:
    """White space that a file or an editor has put around a value."""
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
