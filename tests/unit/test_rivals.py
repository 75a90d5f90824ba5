"""The recipes of docs/rivals.md: every shipped one is read, built, and trains what it says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import yaml

from helpers.model_factory import draw_clips, join, tiny_t5
from helpers.repository import ROOT
from signfuse_dist.config import ModelConfig
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode

RIVALS = {"uni_sign_pose": "mt5_base", "spamo": "flan_t5_xl"}
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "recipe").glob("*.yaml"))
VECTORS = 10  # numbers of a frame, of both sets together


def narrow(model: ModelConfig) -> ModelConfig:
    return replace(model, dim=16, skeletal_channels=(4, 6, 8, 16), num_heads=2, norm="layer")


def test_every_shipped_recipe_is_papers_ours_or_a_rivals() -> None:
    assert {*RECIPES} == {"paper", "strong", *RIVALS}


@pytest.mark.parametrize("experiment", ["phoenix14t", "csl_daily", "how2sign"])
@pytest.mark.parametrize("recipe", RIVALS)
def test_every_corpus_can_be_trained_by_a_rivals_recipe(experiment: str, recipe: str) -> None:
    (run,) = load_stages(experiment, [f"recipe={recipe}", f"model={RIVALS[recipe]}"])
    assert run.recipe == recipe
    assert run.stage.name == "finetune"


@pytest.mark.parametrize("recipe", RIVALS)
def test_a_rival_is_built_and_every_weight_that_trains_gets_a_gradient(recipe: str) -> None:
    (run,) = load_stages("phoenix14t", [f"recipe={recipe}", f"model={RIVALS[recipe]}"])
    torch.manual_seed(0)
    model = SignFuse(
        narrow(run.model),
        LanguageModel(tiny_t5(), [2, 3, 4]),
        vector_dim=VECTORS if run.model.feature_sets else None,
    )
    prepare(model, "finetune", run.loss)
    set_mode(model, "finetune")
    batch = join(draw_clips([9, 4]))
    if run.model.feature_sets:
        vectors = torch.randn(13, VECTORS)
        batch = replace(batch, frames=batch.frames[:0], frame_vectors=vectors)
    objective = StageObjective("finetune", run.loss)
    assert "contrastive" not in objective.weights
    sums = objective(model, batch)
    torch.stack([objective.weights[n] * value for n, value in sums.items()]).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    of_llm = [name for name in trained if name.startswith("language_model")]
    if recipe == "uni_sign_pose":
        assert model.visual is None
        assert not any("lora" in name for name in of_llm)
        assert len(of_llm) == len(list(model.language_model.parameters()))
    else:
        assert model.skeletal is None
        assert of_llm
        assert all("lora" in name for name in of_llm)
        assert {name for name in trained if name.startswith("visual.")} == {
            "visual.conv.weight",
            *(f"visual.norm.{name}" for name, _ in model.visual.norm.named_parameters()),
        }
    assert model.embed_signs(model.encode(batch))[0].shape[1] == run.model.num_sign_tokens


def test_the_feature_sets_of_the_recipe_are_those_that_the_page_makes() -> None:
    page = (ROOT / "docs" / "rivals.md").read_text(encoding="utf-8")
    recipe = yaml.safe_load((ROOT / "configs/recipe/spamo.yaml").read_text(encoding="utf-8"))
    made = re.findall(r"signfuse features \S+ --model \S+/(\S+)", page)
    assert recipe["model"]["visual_backbone"] == f"features:{'+'.join(made)}"
