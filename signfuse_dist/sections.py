"""Sections by their names: which keys have a property, and building one from YAML or JSON.

What the sections are is :mod:`signfuse_dist.config`'s. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from signfuse_dist.config import BlendedCorpus, DataConfig, Property, RunConfig, names_with
from signfuse_dist.records import explain

SECTIONS: dict[str, type] = {
    f.name: typing.get_type_hints(RunConfig)[f.name]
    for f in dataclasses.fields(RunConfig)
    if f.name not in ("name", "recipe", "origin")
}


def keys_with(*properties: Property) -> tuple[str, ...]:
    """Return each ``section.key`` that has one of these properties."""
    return tuple(
        f"{section}.{name}"
        for section, cls in SECTIONS.items()
        for name in names_with(cls, *properties)
    )


T = TypeVar("T")


def build_section(
    section: str, cls: type[T], values: Mapping[Any, Any], errors: list[str]
) -> T | None:
    """Build one section from YAML or JSON, or record every error of it and return None."""
    lists_as_tuples = {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if cls is DataConfig and isinstance(lists_as_tuples.get("blend"), tuple):
        before = len(errors)
        lists_as_tuples["blend"] = _build_blend(section, lists_as_tuples["blend"], errors)
        if len(errors) > before:
            return None
    try:
        return cls(**lists_as_tuples)
    except ValidationError as e:
        named = explain(cls, e, lambda place: ".".join([section, *map(str, place[:1])]))
        errors += [f"{e}; it has no default" if e.endswith(": missing") else e for e in named]
        return None


def _build_blend(section: str, entries: tuple[Any, ...], errors: list[str]) -> tuple[Any, ...]:
    """Build each corpus of a blend, with the section of its own, or record every error."""
    built = []
    for number, entry in enumerate(entries, start=1):
        where = f"{section}.blend.entry {number}"
        if not isinstance(entry, Mapping):
            errors.append(f"{where}: expected a mapping such as {{corpus: NAME}}, got {entry!r}")
            continue
        if "corpus" not in entry:
            errors.append(f"{where}.corpus: missing; name a file of configs/data")
            continue
        if isinstance(entry.get("data"), Mapping):
            if entry["data"].get("blend"):
                errors.append(f"{where}: {entry['corpus']} is a blend itself")
                continue
            own = build_section(f"{where}.data", DataConfig, entry["data"], errors)
            if own is None:
                continue
            entry = {**entry, "data": own}
        elif "data" not in entry:  # its file is not there, which is said elsewhere
            continue
        part = build_section(where, BlendedCorpus, entry, errors)
        built += [] if part is None else [part]
    return tuple(built)
