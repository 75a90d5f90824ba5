"""Recipes: keys of several sections under one name, that no other file sets; how a run differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.ablation.rows import read_ablations
from signfuse_dist.config import STAGES, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved, load_run, load_stages
from signfuse_dist.recipe import PAPER, departures, described
from signfuse_dist.run_folder import fixed

RECIPES = ROOT / "configs" / "recipe"
EXPERIMENTS = sorted(p.stem for p in (ROOT / "configs" / "experiment").glob("*.yaml"))
WORDS = ["stage.learning_rate=1e-3"]


def experiment(tmp_path: Path, recipe: dict | None, **sections: object) -> Path:
    """A copy of the demo's files with a recipe of its own, `mine`."""
    for folder in ("data", "model", "stage"):
        (tmp_path / folder).symlink_to(ROOT / "configs" / folder)
    (tmp_path / "recipe").mkdir()
    if recipe is not None:
        (tmp_path / "recipe" / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "experiment").mkdir()
    demo = yaml.safe_load((ROOT / "configs/experiment/demo.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "experiment" / "demo.yaml"
    path.write_text(yaml.safe_dump({**demo, **sections}), encoding="utf-8")
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        load_run(str(path), "finetune", words)
    return str(error.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_paper_is_what_is_meant_where_no_recipe_is_named(name: str) -> None:
    for bare, named in zip(load_stages(name), load_stages(name, ["recipe=paper"]), strict=True):
        assert named == bare
        assert bare.recipe == PAPER


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_can_be_trained_by_the_strong_recipe(name: str) -> None:
    for run in load_stages(name, ["recipe=strong"]):
        assert run.recipe == "strong"
        assert run.model.joint_frame == "body"


def test_every_line_of_the_strong_recipe_stands_in_the_papers_with_another_value() -> None:
    files = {
        name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("paper", "strong")
    }
    for section, values in files["strong"].items():
        for key, value in values.items():
            if section != "stage":
                assert files["paper"][section][key] != value, f"{section}.{key}"


def test_a_recipe_sets_keys_of_several_sections_and_the_experiment_overrides_it(
    tmp_path: Path,
) -> None:
    recipe = {
        "model": {"dropout": 0.2, "positions": "rotary"},
        "augment": {"crop": 0.3},
        "stage": {"finetune": {"rates": {"visual": 0.5}}},
    }
    path = experiment(
        tmp_path, recipe, use={"data": "synthetic", "model": "tiny", "recipe": "mine"},
        model={"positions": "none"},
    )  # fmt: skip
    run = load_run(str(path), "finetune", ["augment.crop=0.1"])
    assert (run.model.dropout, run.model.positions, run.augment.crop) == (0.2, "none", 0.1)
    assert run.stage.rates == {"visual": 0.5}
    assert load_run(str(path), "contrastive").stage.rates is None
    assert run.recipe == "mine"
    assert load_run(str(path), "finetune", ["recipe=paper"]).model.dropout == 0.0


def test_a_key_that_another_file_sets_is_refused(tmp_path: Path) -> None:
    path = experiment(tmp_path, {"model": {"norm": "layer"}, "data": {"fps": 5.0}})
    message = refused(path, "recipe=mine")
    assert "mine.yaml: model.norm is set by model=narrow too" in message
    assert "mine.yaml: section: unknown key 'data'" in message
    assert "recipe=mien" in refused(path, "recipe=mien")
    assert "did you mean" in refused(path, "recipe=mien")
    assert "recipe=" in refused(path, "recpie=mine")
    assert "neither a name of configs/recipe" in refused(path, "recipe=../recipe/mine")


def test_what_a_recipe_sets_identifies_a_run_and_its_name_does_not(tmp_path: Path) -> None:
    recipe = {"model": {"dropout": 0.2}}
    path = experiment(tmp_path, recipe)
    named = load_run(str(path), "finetune", ["recipe=mine"])
    typed = load_run(str(path), "finetune", ["model.dropout=0.2"])
    assert fixed(named) == fixed(typed) != fixed(load_run(str(path), "finetune"))
    written = tmp_path / "config.yaml"
    for run in (named, typed):
        written.write_text(yaml.safe_dump(run.to_dict()), encoding="utf-8")
        assert load_resolved(written) == run
    assert "recipe" not in typed.to_dict()


def test_a_run_says_where_it_departs_from_the_paper() -> None:
    def of(*words: str) -> RunConfig:
        return load_run("phoenix14t", "finetune", words)

    assert departures(of()) == {}
    assert described(of()) == "paper; every key of the method has its default"
    words = ("model.positions=distance", "model.scales=[frame]", "augment.crop=0.1")
    quick = ("train.num_workers=0", "model.visual_chunk=4", "model.attention=sdpa", "train.seed=3")
    run = of(*words, *quick)
    assert departures(run)["model.positions"] == ("none", "distance")
    assert described(run) == (
        "paper; not as printed: model.positions=distance, model.scales=[frame], augment.crop=0.1"
    )
    assert described(of("recipe=strong")).startswith("strong; not as printed: model.")
    assert departures(of("recipe=strong"))["train.select"] == ("last", "best")
    free = ("train.stages=[finetune]", "train.patience=2", "model.llm_quantization=4bit")
    assert described(of("train.select=best", *free)) == (
        "paper; not as printed: model.llm_quantization=4bit, train.stages=[finetune], "
        "train.select=best, train.patience=2"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_table_1_is_unchanged_under_the_paper(stage: str) -> None:
    run = load_run("phoenix14t", stage, ["recipe=paper"])
    assert departures(run) == {}


def test_the_table_of_switches_changes_each_line_of_the_strong_recipe() -> None:
    (table,) = read_ablations(str(ROOT / "configs" / "ablation" / "recipe" / "switches.yaml"))
    strong = load_run("phoenix14t", "finetune", ["recipe=strong"]).flat()
    paper = load_run("phoenix14t", "finetune").flat()
    switched: set[str] = set()
    for row in table.rows:
        values = load_run("phoenix14t", "finetune", row.overrides).flat()
        switched |= {key for key in values if values[key] != strong[key]}
        if "recipe=strong" in row.overrides:
            assert all(values[key] in (strong[key], paper[key]) for key in values), row.name
    assert {key for key in strong if strong[key] != paper[key]} <= switched
