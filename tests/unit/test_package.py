"""The package: its map, and which way its imports go."""

from __future__ import annotations

import re

import grimp

import signfuse_dist
from helpers.repository import ROOT

MODEL = "signfuse_dist.model"
OF_METHODS = ("model.saved", "model.hub", "evaluation.translate", "evaluation.choices")


def test_the_map_of_the_package_names_every_folder_and_module() -> None:
    assert signfuse_dist.__doc__ is not None
    named = set(re.findall(r"[a-z_]+", signfuse_dist.__doc__))
    package = ROOT / "signfuse_dist"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert folders | modules <= named


def test_no_imports_go_in_a_circle_but_those_of_a_model_that_loads_and_uses_itself() -> None:
    """`SignFuse` imports within its methods what loads, pushes and translates with it."""
    graph = grimp.build_graph("signfuse_dist", cache_dir=None)
    for used in OF_METHODS:
        graph.remove_import(importer=f"{MODEL}.signfuse", imported=f"signfuse_dist.{used}")
    circles = {
        frozenset((module, other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=other, imported=module)
    }
    assert circles == set()
