"""What is imported with a module: by itself and by what it imports, but not inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from helpers.repository import ROOT

PACKAGE = "signfuse_dist"


def imported_with(module: str) -> set[str]:
    """Return the packages beyond this one that importing a module of it brings."""
    seen, waiting, others = set(), [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in _imports(name):
            if imported.split(".")[0] == PACKAGE:
                waiting += [imported, imported.rpartition(".")[0]]
            else:
                others.add(imported.split(".")[0])
    return others


@cache
def _imports(module: str) -> tuple[str, ...]:
    file = _file(module)
    return () if file is None else tuple(_of(ast.parse(file.read_text(encoding="utf-8")).body))


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def _of(statements: list[ast.stmt]) -> Iterator[str]:
    """Yield the modules that statements import, and names of them that may be modules."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, (ast.Try, ast.With, ast.ClassDef)):
            yield from _of(statement.body)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.dump(statement.test):
            yield from _of([*statement.body, *statement.orelse])
