"""The keys of docs/configuration.md; ``python tests/helpers/key_table.py`` writes them anew.

What is listed comes from the fields of ``signfuse_dist/config.py``: name, type, default, the string
below the field, and the properties in its metadata. The columns' words stand above the table.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from signfuse_dist import config
from signfuse_dist.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "configuration.md"
COMMAND = "python tests/helpers/key_table.py"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"
SHOWN = ("resume", "load", "stage", "memory only")  # of config.Property; page and test explain them
_NAMES = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}


def rewritten(text: str) -> str:
    """Return the page with the table of every section between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise LookupError(f"{PAGE.name} has no {BEGIN.strip()} before {END}")
    return f"{before}{BEGIN}{tables()}{end}{after}"


def tables() -> str:
    """Return a heading and a table for each section."""
    source = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    parts = []
    for section, cls in SECTIONS.items():
        meanings = field_strings(classes[cls.__name__])
        hints = typing.get_type_hints(cls, include_extras=True)
        rows = [
            f"| `{item.name}` | {_default(item.default)} | {allowed(hints[item.name])} | "
            f"{meanings[item.name]} | {_changes(item)} |"
            for item in dataclasses.fields(cls)
        ]
        header = f"| `{section}.` | default | value | meaning | may differ |"
        parts.append("\n".join([f"### {section}\n", header, "|---|---|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def field_strings(node: ast.ClassDef) -> dict[str, str]:
    """Return the string below each field of a class, on one line; KeyError where there is none."""
    meanings = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if is_text and isinstance(below.value.value, str):
                meanings[field.target.id] = " ".join(below.value.value.split())
    return meanings


def allowed(hint: Any) -> str:
    """Return in words which values a type takes."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [allowed(option) for option in options if option is not type(None)]
        return f"{', '.join(inner)}, or null"
    if origin is typing.Literal:
        return ", ".join(f"`{option}`" for option in options)
    if origin is tuple:
        return f"list of: {allowed(options[0])}"
    if origin is dict:
        return f"mapping of {allowed(options[0])} to: {allowed(options[1])}"
    if origin is typing.Annotated:
        return " ".join([allowed(options[0]), *_limits(options[1:])])
    if dataclasses.is_dataclass(hint):
        keys = ", ".join(f"`{item.name}`" for item in dataclasses.fields(hint))
        return f"mapping of {keys}"
    return _NAMES[hint]


def _limits(metadata: tuple[Any, ...]) -> list[str]:
    """Return the bounds that the constraints of a type set."""
    limits = [limit for item in metadata if isinstance(item, FieldInfo) for limit in item.metadata]
    words = {"ge": "of at least", "gt": "above", "lt": "below"}
    return [
        f"{said} {getattr(limit, bound):g}"
        for limit in limits
        for bound, said in words.items()
        if hasattr(limit, bound)
    ]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "none"
    return f"`{json.dumps(value)}`"


def _changes(item: dataclasses.Field[Any]) -> str:
    return ", ".join(word for word in SHOWN if word in item.metadata.get("properties", ()))


if __name__ == "__main__":
    try:
        page = rewritten(PAGE.read_text(encoding="utf-8"))
    except LookupError as error:
        sys.exit(str(error))
    PAGE.write_text(page, encoding="utf-8")
