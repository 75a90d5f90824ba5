"""An encoder-decoder LLM through the commands: trained on two processes, evaluated, the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.model_factory import write_t5
from helpers.project import Project
from helpers.trained import TOLERANCE, furthest, weights
from signfuse_dist.evaluation.evaluate import evaluate

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def llm(project: Project, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random T5, with dropout, for the tokenizer of the small corpus."""
    return write_t5(project.folder / "llm", tmp_path_factory.mktemp("t5"))


def test_two_processes_train_it_as_one_does_and_it_is_evaluated(
    project: Project, llm: str, tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    for stage in ("contrastive", "alignment", "finetune"):
        project.train(two, 2, f"stage={stage}", f"model.llm={llm}")
    (one / "small").mkdir(parents=True)
    (one / "small" / "alignment").symlink_to(two / "small" / "alignment")
    printed = project.train(
        one, 1, "stage=finetune", f"model.llm={llm}", "train.micro_batch_size=4"
    )
    assert "attention: sdpa in CMFA and HTA, sdpa in the LLM (model.attention: auto)" in printed
    ours, theirs = (weights(output, "finetune") for output in (one, two))
    assert sum("lora_" in name for name in ours) == 2 * 6 * 4  # A and B; 6 blocks of q, k, v, o
    assert furthest(ours, theirs) <= TOLERANCE  # T5's dropout is off, else they would differ
    torch.manual_seed(0)
    folder = evaluate(two / "small" / "finetune", "test")
    lines = (folder / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all(isinstance(json.loads(line)["hypothesis"], str) for line in lines)
    assert (folder / "scores.json").is_file()
