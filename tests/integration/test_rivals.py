"""The rivals' recipes through the commands, with a small encoder-decoder in the LLM's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from helpers.model_factory import write_t5
from helpers.project import Project
from helpers.vision_models import write_vision_model
from signfuse_dist.cli import main
from signfuse_dist.evaluation.evaluate import evaluate
from signfuse_dist.experiment import load_resolved

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def llm(project: Project, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_t5(project.folder / "llm", tmp_path_factory.mktemp("t5"))


@pytest.mark.parametrize("recipe", ["uni_sign_pose", "spamo"])
def test_a_rival_is_trained_evaluated_and_says_what_it_is(
    project: Project, llm: str, recipe: str, tmp_path: Path
) -> None:
    if recipe == "spamo":
        for name, family in (("clip-vit-large-patch14", "clip"), ("videomae-large", "videomae")):
            model = write_vision_model(tmp_path / name, family)
            assert main(["features", str(project.folder / "shards"), "--model", str(model)]) == 0
    # The small experiment's own sizes stand above a recipe's; `tiny` sets keys that recipes set.
    file = {"llm": llm, "llm_dtype": "float32", "lora_targets": None, "attention": "auto"}
    path = project.folder / "configs" / "model" / "small_t5.yaml"
    path.write_text(yaml.safe_dump(file), encoding="utf-8")
    words = [f"recipe={recipe}", "model=small_t5", f"model.llm={llm}", "stage=finetune"]
    project.train(tmp_path, 2, *words)
    folder = tmp_path / "small" / "finetune"
    assert load_resolved(folder / "config.yaml").recipe == recipe
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert recipe in card.replace("\\", "")
    rows = (evaluate(folder, "test") / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 5
    assert all(isinstance(json.loads(row)["hypothesis"], str) for row in rows)
    assert (folder / "model" / "llm").is_dir() is (recipe == "uni_sign_pose")
