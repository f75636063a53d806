"""Quotes names and texts for SQL statements that take no parameters."""

from __future__ import annotations


def identifier(name: str) -> str:
    """Quote a name."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text so that it is safe with any setting of ``standard_conforming_strings``."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return f" E{quoted}" if "\\" in text else quoted
