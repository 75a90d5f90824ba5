"""One section of a configuration: from YAML values to a dataclass, every error recorded."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal


def build(section: str, cls: type, values: dict[str, Any], errors: list[str]) -> Any:
    """Build one section, or record every error of it and return None."""
    hints = typing.get_type_hints(cls)
    found = len(errors)
    refuse_unknown(values, hints, section, errors)
    arguments = {}
    for item in dataclasses.fields(cls):
        label = f"{section}.{item.name}"
        if item.name not in values:
            if item.default is dataclasses.MISSING:
                errors.append(f"{label}: missing; it has no default")
            continue
        try:
            value = _coerce(values[item.name], hints[item.name])
        except ValueError as e:
            errors.append(f"{label}: {e}")
            continue
        minimum = item.metadata.get("min")
        # Written so that not-a-number, which compares with nothing, is refused as well.
        if minimum is not None and value is not None and not value >= minimum:
            errors.append(f"{label}: {value} is not at least {minimum}")
        arguments[item.name] = value
    return cls(**arguments) if len(errors) == found else None


def _coerce(value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint``; YAML reads 1e-4 as a string, so numbers go by the field."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _coerce(value, next(o for o in options if o is not type(None)))
    if origin is Literal:
        if value in options:
            return value
        near = suggest(str(value), options)
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, options))}{near}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} is not a list")
        return tuple(_coerce(v, options[0]) for v in value)
    return _coerce_scalar(value, hint)


def _coerce_scalar(value: Any, hint: type) -> Any:
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass  # said below, with the name of the expected type
    raise ValueError(f"{value!r} is not {'an' if hint is int else 'a'} {hint.__name__}")


def refuse_unknown(
    given: Iterable[str], known: Iterable[str], label: str, errors: list[str]
) -> None:
    """Record every name that is not known, with the nearest one that is."""
    known = list(known)
    for key in given:
        if key not in known:
            errors.append(f"{label}: unknown key {key!r}{suggest(str(key), known)}")


def suggest(name: str, known: Iterable[Any]) -> str:
    """Return "; did you mean ...?" when a known name is near, else nothing."""
    near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
