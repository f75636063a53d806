"""What users can see has a docstring: the reference is made of these, and shows nothing else."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
from collections.abc import Iterator

import pytest

PUBLIC = ("aiopqr", "aiopqr.events", "aiopqr.rotation", "aiopqr.sources", "aiopqr.stats", "aiopqr.testing")
CLASSES = {
    thing
    for module in map(importlib.import_module, PUBLIC)
    for name in module.__all__
    if inspect.isclass(thing := getattr(module, name)) and thing.__module__.startswith("aiopqr")
}


def undocumented(kind: type) -> Iterator[str]:
    """Its own public methods and properties without a docstring, either here or on a base."""
    values = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name, member in vars(kind).items():
        is_value = name in values or isinstance(member, enum.Enum) or not (callable(member) or hasattr(member, "fget"))
        if not name.startswith("_") and not is_value and not inspect.getdoc(getattr(kind, name)):
            yield name


@pytest.mark.parametrize(
    "kind", sorted(CLASSES, key=lambda kind: kind.__qualname__), ids=lambda kind: kind.__qualname__
)
def test_what_is_public_on_an_exported_class_is_documented(kind: type) -> None:
    assert not list(undocumented(kind))
