"""Training, a resume, an evaluation and the loader's page-locked memory, on one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.project import Project
from helpers.trained import furthest, log, weights
from signfuse_dist.cli import main
from signfuse_dist.config import STAGES, AugmentConfig
from signfuse_dist.data.loader import ClipBatches, batches
from signfuse_dist.data.split import open_split
from signfuse_dist.experiment import load_run
from signfuse_dist.plan import ClipFrames, MicroBatch

pytestmark = pytest.mark.gpu
WORDS = ("train.micro_batch_size=4", "train.precision=bf16", "train.deterministic=true")


@pytest.fixture(scope="module")
def trained(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages in bfloat16 under ZeRO-2, with what each printed."""
    output = tmp_path_factory.mktemp("gpu")
    for stage in STAGES:
        printed = project.train(output, 1, f"stage={stage}", *WORDS)
        (output / f"{stage}.log").write_text(printed, encoding="utf-8")
    return output


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_on_the_gpu_and_its_log_says_so(trained: Path, stage: str) -> None:
    assert torch.cuda.get_device_name() in (trained / f"{stage}.log").read_text(encoding="utf-8")
    lines = log(trained, stage)
    assert len(lines) == 5
    assert all(torch.isfinite(torch.tensor(line["total"])) for line in lines)
    assert all(line["peak_memory_gb"] > 0 for line in lines)
    assert all(bool(torch.isfinite(value).all()) for value in weights(trained, stage).values())


def test_a_run_that_was_killed_ends_with_the_bits_of_an_undisturbed_one(
    project: Project, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "small" / "contrastive" / "checkpoints"
    words = ("stage=contrastive", *WORDS)
    project.train_until_killed(tmp_path, 1, lambda: any(folder.glob("step_*2/state.json")), *words)
    project.train(tmp_path, 1, *words)
    assert furthest(weights(tmp_path, "contrastive"), weights(trained, "contrastive")) == 0


def test_the_last_stage_is_evaluated(trained: Path) -> None:
    folder = trained / "small" / "finetune"
    assert main(["evaluate", str(folder), "--split", "test"]) == 0
    lines = (folder / "evaluation" / "test" / "hypotheses.jsonl").read_text().splitlines()
    assert len(lines) == 5


def test_batches_in_page_locked_memory_arrive_as_they_were_read(
    project: Project, device: torch.device
) -> None:
    data = load_run(project.experiment, "contrastive", []).data
    split = open_split(project.folder / "shards" / "train", data)
    frames = ClipFrames(split.lengths, data.max_frames, AugmentConfig(), 0)
    order = [MicroBatch([n, n + 1], 0) for n in range(0, 20, 2)]
    clips = ClipBatches(split, order, frames, None)
    plain = list(batches(clips, 0, pin_memory=False))
    for pinned, read in zip(batches(clips, 2, pin_memory=True), plain, strict=True):
        assert pinned.frames.is_pinned()
        arrived = pinned.to(device)
        assert arrived.frames.is_cuda
        assert torch.equal(arrived.frames.cpu(), read.frames)
        assert torch.equal(arrived.pose.cpu(), read.pose)
