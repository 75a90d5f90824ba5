"""The strong recipe trained as a user trains it: what is drawn is the same anywhere, and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.project import Project
from helpers.trained import TOLERANCE, furthest, log, weights
from signfuse_dist.experiment import load_resolved

pytestmark = pytest.mark.long

WORDS = [
    "stage=finetune",
    "stage.epochs=1",
    "train.stages=[finetune]",
    "recipe=strong",
    "train.checkpoint_steps=2",
    "augment.drop_stream=0.5",  # of few clips some lose a stream
    "augment.mask_spans=0.1",
]


@pytest.fixture(scope="module")
def two_processes(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("strong")
    project.train(output, 2, *WORDS)
    return output


def test_one_process_draws_what_two_draw(
    project: Project, two_processes: Path, tmp_path: Path
) -> None:
    """Dropout, lost streams, spans and noise: the same losses and weights."""
    project.train(tmp_path, 1, *WORDS, "train.micro_batch_size=4")
    assert furthest(weights(tmp_path, "finetune"), weights(two_processes, "finetune")) <= TOLERANCE
    ours, theirs = log(tmp_path, "finetune"), log(two_processes, "finetune")
    for one, two in zip(ours, theirs, strict=True):
        assert one["total"] == pytest.approx(two["total"], rel=3e-6)


@pytest.mark.alone
def test_a_run_that_was_killed_ends_with_the_same_bits(
    project: Project, two_processes: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "small" / "finetune" / "checkpoints" / "step_00000002" / "state.json"
    project.train_until_killed(tmp_path, 2, checkpoint.exists, *WORDS)
    assert "resuming after step" in project.train(tmp_path, 2, *WORDS)
    assert furthest(weights(tmp_path, "finetune"), weights(two_processes, "finetune")) == 0


def test_its_card_says_the_recipe_and_what_is_not_as_printed(two_processes: Path) -> None:
    folder = two_processes / "small" / "finetune"
    assert load_resolved(folder / "config.yaml").recipe == "strong"
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "strong; not as printed" in card
    assert "model.dropout=0.1" in card
