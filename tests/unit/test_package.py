"""The package: its map, and which way its imports go."""

from __future__ import annotations

import re

import grimp

import signfuse_dist
from helpers.repository import ROOT

MODEL = "signfuse_dist.model"


def test_the_map_of_the_package_names_every_folder_and_module() -> None:
    assert signfuse_dist.__doc__ is not None
    named = set(re.findall(r"[a-z_]+", signfuse_dist.__doc__))
    package = ROOT / "signfuse_dist"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert folders | modules <= named


def test_no_imports_go_in_a_circle_but_those_of_a_model_that_loads_itself() -> None:
    graph = grimp.build_graph("signfuse_dist", cache_dir=None)
    circles = {
        frozenset((module, other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=other, imported=module)
    }
    assert circles == {frozenset((f"{MODEL}.saved", f"{MODEL}.signfuse"))}
