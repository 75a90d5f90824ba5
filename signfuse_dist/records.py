"""YAML and JSON as typed records: pydantic validates, the errors are in the project's words.

A record is a dataclass of pydantic. What a file holds is validated as a whole, so that all of its
errors come together; each names the place and the value, and the nearest name for one that is
misspelt. Values are taken as they are: a numeral in quotes is no number.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from signfuse_dist.errors import raise_together, suggest

# Keys that a record does not have are refused; without this they are ignored.
STRICT_KEYS = ConfigDict(extra="forbid")
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
NonBlank = Annotated[str, StringConstraints(strict=True, pattern=r"\S")]

Place = tuple[int | str, ...]
"""Keys and numbers of entries that lead to a value from the outside in."""
T = TypeVar("T")
_SHOWN = 80  # characters of a value in an error
_TYPES = {
    "int_type": "an int",
    "int_from_float": "an int",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a str",
    "string_pattern_mismatch": "text",
    "bool_type": "a bool",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}


def read_record(kind: type[T], value: object, headline: str) -> T:
    """Return plain YAML or JSON as a record of ``kind``.

    Raises :class:`UserError` that begins with ``headline`` and has every error of ``value``.
    """
    errors: list[str] = []
    record = build(kind, value, errors)
    raise_together(errors, headline)
    assert record is not None
    return record


def dotted(place: Place) -> str:
    """Return a place as ``scores.metrics.BLEU-4``; entries of a list are counted from 1."""
    steps = (f"entry {step + 1}" if isinstance(step, int) else str(step) for step in place)
    return ".".join(steps)


def build(
    kind: type[T],
    value: object,
    errors: list[str],
    name_place: Callable[[Place], str] = dotted,
) -> T | None:
    """Return ``value`` as a record of ``kind``, or record every error of it and return None.

    ``name_place`` says in an error where it is; the place of ``value`` itself is ``()``.
    """
    try:
        return typing.cast(T, _adapter(typing.cast(Any, kind)).validate_python(value))
    except ValidationError as e:
        errors += explain(kind, e, name_place)
        return None


def explain(kind: Any, error: ValidationError, name_place: Callable[[Place], str]) -> list[str]:
    """Return a line for each error of a value that is no record of ``kind``."""
    return [_explain(kind, one, name_place) for one in map(dict, error.errors())]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _explain(kind: Any, error: Mapping[str, Any], name_place: Callable[[Place], str]) -> str:
    """Return an error of pydantic with its place, the value, and what was probably meant."""
    place: Place = tuple(error["loc"])
    where = name_place(place)
    before = f"{where}: " if where else ""
    value, about = _short(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "unexpected_keyword_argument" | "invalid_key":
            outside, key = name_place(place[:-1]), str(place[-1])
            near = suggest(key, _keys(kind, place[:-1]))
            return f"{outside}{': ' if outside else ''}unknown key {key!r}{near}"
        case "missing":
            others = "".join(f" or {name}" for name in _spellings(kind, place)[1:])
            return f"{before.removesuffix(': ')}{others}: missing"
        case "dataclass_type":
            keys = ", ".join(_keys(kind, place))
            return f"{before}expected a mapping of {keys}, got {value}"
        case "literal_error":
            options = re.findall(r"'([^']*)'", about["expected"])
            near = suggest(str(error["input"]), options)
            return f"{before}{value} is not one of {', '.join(options)}{near}"
        case "value_error":
            # Of a record as a whole its place says enough.
            named = "" if isinstance(error["input"], dict) else f"{value} "
            return f"{before}{named}{about['error']}"
        case "greater_than_equal":
            return f"{before}{value} is not at least {about['ge']:g}"
        case "greater_than":
            return f"{before}{value} is not above {about['gt']:g}"
        case "less_than":
            return f"{before}{value} is not below {about['lt']:g}"
        case "less_than_equal":
            return f"{before}{value} is not at most {about['le']:g}"
        case "too_short" | "too_long":
            limit = about.get("min_length", about.get("max_length"))
            bound = "at least" if error["type"] == "too_short" else "at most"
            return f"{before}{value} does not have {bound} {limit} entries"
        case "string_type" if isinstance(error["input"], dict):
            return f"{before}{value} is not a str; a text with : or {{}} needs quotes"
        case known if known in _TYPES:
            return f"{before}{value} is not {_TYPES[known]}"
        case _:
            return f"{before}{value}: {error['msg']}"


def _short(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _keys(kind: Any, place: Place) -> list[str]:
    """Return the keys of the record at ``place`` inside one of ``kind``, as a file writes them."""
    return [_names(field)[0] for field in dataclasses.fields(_kind_at(kind, place))]


def _spellings(kind: Any, place: Place) -> list[str]:
    """Return all names of the key at the end of ``place``; of an entry of a list, its number."""
    outside = _kind_at(kind, place[:-1])
    fields = dataclasses.fields(outside) if dataclasses.is_dataclass(outside) else ()
    return next((_names(f) for f in fields if _names(f)[0] == place[-1]), [str(place[-1])])


def _kind_at(kind: Any, place: Place) -> Any:
    for step in place:
        kind = _inside(kind, step)
    return _without_none(kind)


def _inside(kind: Any, step: int | str) -> Any:
    """Return the type of the value at ``step`` of one of ``kind``: a record, mapping or list."""
    kind = _without_none(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return next(hints[f.name] for f in dataclasses.fields(kind) if step in _names(f))
    of = typing.get_args(kind)
    return of[0] if isinstance(step, int) else of[1]


def _names(field: dataclasses.Field[Any]) -> list[str]:
    """Return the keys that a file may give a field by, the usual one first."""
    alias = getattr(field.default, "validation_alias", None) or field.name
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [alias]


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(of for of in typing.get_args(kind) if of is not types.NoneType)
    return kind
