"""The lines of docs/paper.md; ``python tests/helpers/paper_map.py`` puts them right.

A row of five cells names a file, objects of it and a test. The cell of the file becomes links, one
an object, to the lines of their definitions; written by hand, the file stands there in backquotes.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "paper.md"
COMMAND = "python tests/helpers/paper_map.py"
_CODE = re.compile(r"`([^`]+)`")
_TARGET = re.compile(r"\]\(\.\./([^)#]+)#L\d+\)")


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the map, stripped; headers and rules are left out."""
    found = [cells for line in text.split("\n") if (cells := _cells(line))]
    return [cells for cells in found if files(cells)]


def files(cells: list[str]) -> list[str]:
    """Return the files that a row's third cell names, each once."""
    return list(dict.fromkeys([*_TARGET.findall(cells[2]), *_CODE.findall(cells[2])]))


def objects(cells: list[str]) -> list[str]:
    return _CODE.findall(cells[3])


def rewritten(text: str) -> str:
    """Return the page with every line number right; raise LookupError for an object not there."""
    return "\n".join(_rewritten_line(line) for line in text.split("\n"))


def _rewritten_line(line: str) -> str:
    cells = _cells(line)
    if not cells or not objects(cells) or not files(cells):
        return line
    if len(files(cells)) > 1:
        raise LookupError(f"one file a row: {line}")
    (file,) = files(cells)
    cells[2] = _links(file, [find_line(file, name) for name in objects(cells)])
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _links(file: str, lines: list[int]) -> str:
    shown = file.removeprefix("signfuse_dist/")
    labels = [f"{shown}:{lines[0]}", *(f":{line}" for line in lines[1:])]
    return ", ".join(
        f"[{label}](../{file}#L{line})" for label, line in zip(labels, lines, strict=True)
    )


def _cells(line: str) -> list[str]:
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    return cells if len(cells) == 5 else []


def find_line(file: str, dotted: str) -> int:
    """Return the line on which a class, function, field, variable or YAML key is defined."""
    path, names = ROOT / file, dotted.split(".")
    if path.suffix == ".yaml":
        return _find_key(file, names)
    node = find(tree(path), names)
    if node is None:
        raise LookupError(f"{file} has no {dotted}, which {PAGE.name} names")
    assert isinstance(node, (ast.stmt, ast.expr))
    return node.lineno


def _find_key(file: str, names: list[str]) -> int:
    node, line = yaml.compose((ROOT / file).read_text(encoding="utf-8")), 0
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(key.start_mark.line, value) for key, value in pairs if key.value == name]
        if not found:
            raise LookupError(f"{file} has no key {'.'.join(names)}, which {PAGE.name} names")
        line, node = found[0]
    return line + 1


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def find(node: ast.AST, names: list[str]) -> ast.AST | None:
    """The class, function, variable or field that ``names`` lead to, from a module."""
    for name in names:
        found = None
        for child in ast.iter_child_nodes(node):
            targets = (
                child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
            )
            assigned = [t.id for t in targets if isinstance(t, ast.Name)]
            if getattr(child, "name", None) == name or name in assigned:
                found = child
        if found is None:
            return None
        node = found
    return node


if __name__ == "__main__":
    try:
        found = rewritten(PAGE.read_text(encoding="utf-8"))
    except LookupError as error:
        sys.exit(f"{error}: put the row right, then run this again")
    PAGE.write_text(found, encoding="utf-8")
