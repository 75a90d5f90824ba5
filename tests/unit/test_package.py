"""The package: its map, and which way its imports go."""

from __future__ import annotations

import re

import grimp
import pytest

import signfuse_dist
from helpers.imports import imported_with
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


HEAVY = {"torch", "transformers", "peft", "scipy", "nltk", "matplotlib", "mediapipe", "webdataset"}


@pytest.mark.parametrize(
    ("module", "brought"),
    [
        ("data.pack_workers", set()),
        ("data.pack", set()),
        ("data.verify", set()),
        ("data.look", set()),
        ("data.mediapipe", set()),
        ("evaluation.scores", set()),
        ("evaluation.compare", set()),
        ("report.report", {"matplotlib"}),
        ("jobs.local", set()),
        ("jobs.launcher", {"torch"}),
        ("model.signfuse", {"torch"}),
        ("train", {"torch", "transformers"}),
    ],
)
def test_a_command_starts_without_what_it_may_not_need(module: str, brought: set[str]) -> None:
    """What takes seconds, or half a gigabyte a process, is imported where it is used."""
    assert imported_with(f"signfuse_dist.{module}") & HEAVY == brought


def test_addresses_and_the_hub_are_reached_by_what_is_imported_for_them() -> None:
    for module in ("data.storage", "cli.evaluation", "model.place", "evaluation.scores"):
        assert not imported_with(f"signfuse_dist.{module}") & {"upath", "fsspec", "huggingface_hub"}
