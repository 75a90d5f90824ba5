"""A vision model of transformers in SignFuse: on any number of processes, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.project import Project
from helpers.trained import TOLERANCE, furthest, weights
from helpers.vision_models import write_vision_model
from signfuse_dist.evaluation.evaluate import evaluate

pytestmark = pytest.mark.long

# DINOv2 has a token of masked places, on which nothing depends: distributed training would stop.
WORDS = ["stage=finetune", "train.stages=[finetune]", "model.visual_norm=frozen"]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_vision_model(tmp_path_factory.mktemp("hub") / "dinov2", "dinov2")
    return f"model.visual_backbone=hf:{folder}"


@pytest.fixture(scope="module")
def two_processes(project: Project, dinov2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    project.train(output, 2, *WORDS, dinov2, "model.visual_training=full")
    return output


def test_one_process_trains_it_as_two_do(
    project: Project, dinov2: str, two_processes: Path, tmp_path: Path
) -> None:
    more = ["model.visual_training=full", "train.micro_batch_size=4"]
    project.train(tmp_path, 1, *WORDS, dinov2, *more)
    ours, theirs = weights(tmp_path, "finetune"), weights(two_processes, "finetune")
    trained = [name for name in ours if name.startswith("visual.backbone.network.")]
    assert len(trained) > 20
    assert furthest(ours, theirs) <= TOLERANCE


@pytest.mark.alone
def test_killed_it_ends_with_the_same_bits(
    project: Project, dinov2: str, two_processes: Path, tmp_path: Path
) -> None:
    words = [*WORDS, dinov2, "model.visual_training=full"]
    checkpoint = tmp_path / "small" / "finetune" / "checkpoints" / "step_00000002" / "state.json"
    project.train_until_killed(tmp_path, 2, checkpoint.exists, *words)
    assert "resuming after step" in project.train(tmp_path, 2, *words)
    assert furthest(weights(tmp_path, "finetune"), weights(two_processes, "finetune")) == 0


def test_frozen_it_is_in_no_model_and_a_stage_goes_on_with_cached_features(
    project: Project, dinov2: str, tmp_path: Path
) -> None:
    words = ["model.visual_norm=frozen", dinov2]
    project.train(tmp_path, 2, "stage=contrastive", *words)
    project.train(tmp_path, 2, "stage=alignment", "train.features=cached", *words)
    project.train(tmp_path, 1, "stage=finetune", *words)
    for stage in ("contrastive", "finetune"):
        assert not any("backbone" in name for name in weights(tmp_path, stage))
    assert evaluate(tmp_path / "small" / "finetune", "test").is_dir()
