"""What the site takes from the code itself, so that it cannot fall behind: tables, help texts, pictures.

A line ``<!-- generated: NAME -->`` in a page is replaced by what the function of that name returns.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = (
    "aiopqr",
    "aiopqr.sources",
    "aiopqr.rotation",
    "aiopqr.stats",
    "aiopqr.refusals",
    "aiopqr.integrations.starlette",
    "aiopqr.integrations.sqlalchemy",
    "aiopqr.integrations.opentelemetry",
    "aiopqr.testing",
)


def on_files(files: Files, config: Any) -> Files:
    """The pictures that the benchmarks drew."""
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return re.sub(
        r"<!-- generated: (\w+)(?: ([\w.]+))? -->", lambda m: GENERATORS[m[1]](*filter(None, [m[2]])), markdown
    )


def on_pre_build(config: Any) -> None:
    """Refuse to build where something public says nothing, or is missing from the reference."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    for module_name in PUBLIC:
        if f"generated: api {module_name} -->" not in page:
            raise PluginError(f"{module_name} is public, and is missing from docs/reference/api.md")
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, type | FunctionType) and not thing.__doc__:
                raise PluginError(f"{module_name}.{name} is public, and has no docstring")


def api(module_name: str) -> str:
    module = importlib.import_module(module_name)
    names = [name for name in module.__all__ if module_name != "aiopqr" or name != "Rotator"]  # it is rotation's
    return "\n\n".join(f"::: {module_name}.{name}" for name in names)


def events() -> str:
    from aiopqr import events as module

    def rows() -> Iterator[str]:
        for kind in (getattr(module, name) for name in module.__all__):
            if isinstance(kind, type) and issubclass(kind, module.Event) and kind is not module.Event:
                level = "-" if kind.level is None else logging.getLevelName(kind.level)
                fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind) if field.name != "name")
                yield f"| `{kind.__name__}` | {level} | {_plain(inspect.getdoc(kind) or '')} | {fields} |"

    return "| event | log level | what happened | fields |\n|---|---|---|---|\n" + "\n".join(rows())


def metrics() -> str:
    from aiopqr.integrations import _metrics as module

    rows = [
        f"| `{metric.name}` | {metric.kind.name.lower().replace('_', '-')} | `{metric.unit}` | {metric.description} |"
        for metric in (*module.HISTOGRAMS, *module.OBSERVED)
    ]
    return "| metric | kind | unit | what it says |\n|---|---|---|---|\n" + "\n".join(rows)


def exceptions() -> str:
    import aiopqr
    from aiopqr import rotation

    def rows() -> Iterator[str]:
        for module in (aiopqr, rotation):
            for name in module.__all__:
                kind = getattr(module, name)
                if isinstance(kind, type) and issubclass(kind, BaseException):
                    bases = " and ".join(f"`{_short(base)}`" for base in kind.__bases__)
                    yield f"| `{module.__name__}.{name}` | {bases} | {_plain(inspect.getdoc(kind) or '')} |"

    return "| exception | is also | when |\n|---|---|---|\n" + "\n".join(rows())


def options() -> str:
    """Every parameter of create_pool: its type and default from the signature, the rest from the docstring."""
    import aiopqr

    said = _parameters(inspect.getdoc(aiopqr.create_pool) or "")
    signature = inspect.signature(aiopqr.create_pool)
    rows = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        default = "required" if parameter.default is inspect.Parameter.empty else f"`{parameter.default!r}`"
        rows.append(f"| `{name}` | {default} | {said.get(name, '')} |")
    return "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows)


def cli(command: str = "") -> str:
    argv = [sys.executable, "-m", "aiopqr", *filter(None, [command]), "--help"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    process = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    lines = "\n".join(line.rstrip() for line in process.stdout.strip("\n").splitlines())
    return f"```text\n{lines}\n```"


def _parameters(docstring: str) -> dict[str, str]:
    """The items ``- name, name: text`` of a docstring, whose names stand in double backticks."""
    found: dict[str, str] = {}
    for names, text in re.findall(
        r"^- (``\w+``(?:, ``\w+``)*): ((?:.+\n?)(?:  .+\n?)*)", docstring, flags=re.MULTILINE
    ):
        for name in re.findall(r"\w+", names):
            found[name] = _plain(text)
    return found


def _short(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def _plain(text: str) -> str:
    """A docstring on one line, for a table's cell."""
    text = re.sub(r":(?:class|meth|func|mod|attr|exc):`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


GENERATORS: dict[str, Callable[..., str]] = {
    "api": api,
    "events": events,
    "metrics": metrics,
    "exceptions": exceptions,
    "options": options,
    "cli": cli,
}
