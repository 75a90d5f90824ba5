"""Recipes: how a model is built and trained beyond what the paper prints, under one name.

``configs/recipe/NAME.yaml`` sets keys of the sections ``model``, ``loss``, ``stage``, ``train``,
``augment`` and ``evaluation`` that no file of ``configs/data``, ``configs/model`` or
``configs/stage`` sets; an experiment's own sections and the command line override it. ``paper`` is
what is printed, every key at its default, and is meant where no recipe is named; ``strong`` is the
one that is recommended (docs/recipes.md). Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from signfuse_dist.config import RunConfig
from signfuse_dist.sections import SECTIONS, keys_with

PAPER = "paper"
RECIPE_SECTIONS = tuple(name for name in SECTIONS if name != "data")
# Sections of a method; the others say of what, where and how fast.
_METHOD = ("model", "loss", "stage", "train", "augment")
_NO_METHOD = {"train.seed", "train.tf32", "train.start", "train.start_parts"}
# May differ where a run goes on or a model is loaded, and change what comes out all the same.
_METHOD_THOUGH_FREE = {"train.select", "train.patience", "model.llm_quantization"}


def departures(run: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return where the method of a run is not the default, by key: the default, and the value.

    The defaults are the paper's. Left out is what has none (rate, epochs, precision, LoRA's
    layers), says where something lies, or changes nothing but speed, memory or rounding.
    """
    left_out = {*keys_with("resume", "load", "memory only"), *_NO_METHOD} - _METHOD_THOUGH_FREE
    found: dict[str, tuple[Any, Any]] = {}
    for section in _METHOD:
        values = getattr(run, section)
        for item in dataclasses.fields(values):
            key, value = f"{section}.{item.name}", getattr(values, item.name)
            if item.default is dataclasses.MISSING or key in left_out:
                continue
            if value != item.default:
                found[key] = (item.default, value)
    return found


def described(run: RunConfig) -> str:
    """Return a run's recipe, and where it departs from the paper, in words."""
    changed = departures(run)
    if not changed:
        return f"{run.recipe}; every key of the method has its default"
    return f"{run.recipe}; not as printed: {listed({k: now for k, (_, now) in changed.items()})}"


def listed(values: Mapping[str, Any]) -> str:
    """Return keys and values as they are typed on the command line, with commas."""
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(inner)}" for name, inner in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
