"""A shard that is deleted while it is trained on: its clips are named, the run goes on or stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from helpers.broken_steps import little_loop, little_plan
from helpers.little_clips import write_corpus
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.loader import ClipBatches, batches
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.pack import pack
from signfuse_dist.data.split import read_split
from signfuse_dist.errors import UserError
from signfuse_dist.plan import ClipFrames, MicroBatches

STEPS, CLIPS = 4, 8  # two clips a step, two clips a shard


def train(folder: Path, max_share: float, workers: int) -> int:
    """Train one epoch; delete a shard after the first batch. Return how many clips it held."""
    shards = folder / "shards"
    pack(
        "table",
        write_corpus(folder / "corpus", CLIPS),
        "train",
        shards,
        PackConfig(frame_size=32, fps=10, clips_per_shard=2),
        workers=0,
    )
    split = read_split(shards, load_manifest(shards), None)
    plan, train_config = little_plan(STEPS, 1, max_broken_share=max_share)
    frames = ClipFrames(split.lengths, 64, AugmentConfig(), 0)
    order = MicroBatches(plan, 0, frames.counts, 0, 0)
    last = split.shard_of(order[STEPS - 1].clips[0])
    source = batches(ClipBatches(split, order, frames, None), workers, pin_memory=False)

    def deleting() -> Iterator[Any]:
        for number, batch in enumerate(source):
            if number == 0:
                (shards / last).unlink()
            yield batch

    loop, model = little_loop(Accelerator(cpu=True), folder, plan, train_config)
    assert loop.run(deleting(), 0, model.train)
    return int(np.sum(split.columns.shards == split.columns.shards[order[STEPS - 1].clips[0]]))


def test_its_clips_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, 1.0, workers=0) == 2
    printed = capsys.readouterr().out
    assert 1 <= printed.count("clip left out: clip.") <= 2, "one may have been read before"
    assert "No such file" in printed or "missing" in printed
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == STEPS


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_of_them_stop_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match="of 8 clips of this epoch could not be read"):
        train(tmp_path, 0.0, workers)
