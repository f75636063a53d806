"""The pytest plugin. Apart because pytest always loads it: nothing else is imported until it is used."""

from __future__ import annotations
