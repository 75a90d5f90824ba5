"""Stage 2 from cached features: the same losses, kept whole, and never those of another encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from helpers.project import Project
from helpers.trained import log, weights
from signfuse_dist import cached_features
from signfuse_dist.config import RunConfig
from signfuse_dist.data import features
from signfuse_dist.data.features import FeatureBatches, FeatureSet, part_path
from signfuse_dist.data.loader import BatchSource, ClipBatches
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.engine.loop import make_optimizer
from signfuse_dist.experiment import load_run
from signfuse_dist.model import saved
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import ClipFrames, MicroBatch, MicroBatches, make_plan

STEPS = 4


class Stage:
    """The alignment stage of the small project, in this process."""

    def __init__(self, project: Project, output: Path, seed: int = 0) -> None:
        words = [f"train.output={output}", "train.features=cached", "train.micro_batch_size=4"]
        self.run: RunConfig = load_run(project.experiment, "alignment", words)
        self.split: Split = open_split(self.run.shards("train"), self.run.data)
        self.seed, self.said = seed, list[str]()

    def model(self) -> tuple[SignFuse, Any]:
        torch.manual_seed(self.seed)
        model, tokenizer = saved.build(self.run.model, language=True)
        prepare(model, "alignment", self.run.loss)
        set_mode(model, "alignment")
        return model, tokenizer

    def features(self) -> FeatureSet:
        model, _ = self.model()
        return cached_features.find_or_compute(
            model, self.run, self.split, Accelerator(cpu=True), 0, self.said.append
        )

    def losses(self, found: FeatureSet | None) -> list[dict[str, float]]:
        """Each loss of a few steps, from frames or from features."""
        model, tokenizer = self.model()
        run, objective = self.run, StageObjective("alignment", self.run.loss)
        plan = make_plan(len(self.split), run.stage, run.train, 1)
        frames = ClipFrames(self.split.lengths, run.data.max_frames, run.augment, run.train.seed)
        order = MicroBatches(plan, run.train.seed, frames.counts, 0, 0)
        source: BatchSource = ClipBatches(self.split, order, frames, tokenizer.encode)
        if found is not None:
            stride = run.model.visual_stride
            source = FeatureBatches(found, self.split, order, frames, tokenizer.encode, stride)
        optimizer, losses = make_optimizer(model, 1e-2, 0.01), []
        for item in range(STEPS):
            sums = objective(model, source.load(item, map, pin_memory=False))
            torch.stack(list(sums.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append({name: float(value) for name, value in sums.items()})
        return losses


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts for the twenty clips."""
    monkeypatch.setattr(features, "CLIPS_A_PART", 8)
    monkeypatch.setattr(cached_features, "CLIPS_A_PART", 8)


@pytest.mark.usefixtures("small_parts")
def test_losses_from_features_are_those_from_frames(project: Project, tmp_path: Path) -> None:
    stage = Stage(project, tmp_path)
    ours, theirs = stage.losses(stage.features()), stage.losses(None)
    assert theirs[0]["language"] != pytest.approx(theirs[-1]["language"], rel=1e-3)  # it trains
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_whole_parts_are_kept_and_missing_or_damaged_ones_computed_again(
    project: Project, tmp_path: Path
) -> None:
    stage = Stage(project, tmp_path)
    folder = stage.features().folder
    assert "this process computes 3" in stage.said[-1]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = part_path(folder, 0).stat().st_mtime_ns
    part_path(folder, 1).with_suffix(".json").unlink()
    damaged = bytearray(before["part-00002.safetensors"])
    damaged[-1] ^= 1
    part_path(folder, 2).write_bytes(bytes(damaged))
    stage.features()
    assert "this process computes 2" in stage.said[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert part_path(folder, 0).stat().st_mtime_ns == kept


@pytest.mark.usefixtures("small_parts")
def test_features_of_another_encoder_are_named_and_not_used(
    project: Project, tmp_path: Path
) -> None:
    first = Stage(project, tmp_path, seed=0)
    old = first.features().folder
    other = Stage(project, tmp_path, seed=1)
    new = other.features().folder
    assert new != old
    assert f"features: {old} is not used: of other encoder weights" in other.said
    assert "this process computes 3" in other.said[-1]
    frames = dataclasses.replace(first.run, data=dataclasses.replace(first.run.data, max_frames=3))
    model, _ = first.model()
    shorter = cached_features.describe(model, frames, first.split)
    assert shorter != json.loads((old / "features.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("small_parts")
def test_a_clip_that_was_broken_has_weight_zero_and_is_named(
    project: Project, tmp_path: Path
) -> None:
    stage = Stage(project, tmp_path)
    found = stage.features()
    path = part_path(found.folder, 1)
    part = features.read_part(path, verify=True)
    broken = part.ids[2]
    steps = (*part.steps[:2], 0, *part.steps[3:])
    tensors = {}
    for name in part.streams:
        with features.safe_open(path, framework="pt") as file:
            rows = file.get_tensor(name).split(list(part.steps))
        tensors[name] = torch.cat([r for i, r in enumerate(rows) if i != 2])
    features.write_part(
        path, tensors, features.Part(part.ids, steps, part.streams, {broken: "torn"})
    )
    again = FeatureSet(found.folder, stage.split)
    _, tokenizer = stage.model()
    run = stage.run
    frames = ClipFrames(stage.split.lengths, run.data.max_frames, run.augment, 0)
    places = [9, 10, 11]
    order = [MicroBatch(places, 0)]
    source = FeatureBatches(again, stage.split, order, frames, tokenizer.encode, 2)
    batch = source.load(0, map, pin_memory=False)
    assert batch.faults == (f"{broken}: torn",)
    assert batch.weight.tolist() == [1.0, 0.0, 1.0]
    assert batch.visual is not None
    assert not batch.visual[1].any()
    whole = FeatureBatches(again, stage.split, [MicroBatch([11], 0)], frames, tokenizer.encode, 2)
    alone = whole.load(0, map, pin_memory=False).visual
    assert alone is not None
    torch.testing.assert_close(batch.visual[2, : alone.shape[1]], alone[0], rtol=0, atol=0)


@pytest.mark.long
def test_a_launched_stage_on_two_processes_trains_from_features(
    project: Project, tmp_path: Path
) -> None:
    """The whole path: the same log and weights as from frames, and no cache in other stages."""
    one, two = tmp_path / "frames", tmp_path / "features"
    project.train(one, 2, "stage=contrastive")
    (two / "small").mkdir(parents=True)
    (two / "small" / "contrastive").symlink_to(one / "small" / "contrastive")
    project.train(one, 2, "stage=alignment")
    project.train(two, 2, "stage=alignment", "train.features=cached")
    for ours, theirs in zip(log(two, "alignment"), log(one, "alignment"), strict=True):
        for name in ("language", "alignment", "total"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    frames, kept = weights(one, "alignment"), weights(two, "alignment")
    assert max(float((frames[n] - kept[n]).abs().max()) for n in frames) <= 1e-6
    printed = project.train(two, 2, "stage=finetune", "train.features=cached", status=1)
    assert "train.features=cached is for stage alignment" in printed
