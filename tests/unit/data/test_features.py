"""Features on disk: what was encoded comes back, with the losses of the frames it was made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.model_factory import FRAME_SIZE, draw_clips, join, small_model
from signfuse_dist import cached_features
from signfuse_dist.config import AugmentConfig, LossConfig
from signfuse_dist.data.features import FeatureBatches, FeatureSet, Part, part_path, read_part
from signfuse_dist.data.manifest import ShardError
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import PADDING, ClipFrames, MicroBatch

CLIPS = draw_clips([9, 4, 7])
RUN: Any = SimpleNamespace(train=SimpleNamespace(precision="fp32"))


class _Split(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.ids)


def split() -> Any:
    return _Split(
        ids=tuple(clip.name for clip in CLIPS),
        frame_size=FRAME_SIZE,
        has_pictures=torch.ones(3, dtype=torch.bool).numpy(),
        has_joints=True,
        lengths=torch.tensor([9, 4, 7]).numpy(),
        entries=lambda: [SimpleNamespace(text=clip.name) for clip in CLIPS],
    )


def encode(text: str) -> list[int]:
    """The tokens of the clip of this name; the end token alone for a place of weight zero."""
    return next((clip.tokens.tolist() for clip in CLIPS if clip.name == text), [1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of the alignment stage, and what its encoders make of the clips one at a time."""
    model, folder = small_model(), tmp_path_factory.mktemp("features")
    prepare(model, "alignment", LossConfig())
    set_mode(model, "alignment")
    rows = [row for clip in CLIPS for row in cached_features._encode(model, RUN, join([clip]))]
    cached_features._write(part_path(folder, 0), [c.name for c in CLIPS], rows, [])
    return model, folder


def batches(folder: Path, places: list[int]) -> FeatureBatches:
    there = split()
    frames = ClipFrames(there.lengths, 100, AugmentConfig(), 0)
    found = FeatureSet(folder, there)
    return FeatureBatches(found, there, [MicroBatch(places, 0)], frames, encode, 2)


def test_losses_and_gradients_are_those_of_the_frames(kept: tuple[Any, Path]) -> None:
    model, folder = kept
    objective = StageObjective("alignment", LossConfig())
    found = []
    for batch in (join(CLIPS), batches(folder, [0, 1, 2]).load(0, map, pin_memory=False)):
        sums = objective(model, batch)
        model.zero_grad()
        torch.stack(list(sums.values())).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        found.append(({n: float(v) for n, v in sums.items()}, gradients))
    (frames, slopes), (features, same) = found
    assert features == pytest.approx(frames, rel=1e-5)
    torch.testing.assert_close(same, slopes, rtol=1e-4, atol=1e-5)


def test_a_place_of_weight_zero_has_no_features(kept: tuple[Any, Path]) -> None:
    batch = batches(kept[1], [1, PADDING]).load(0, map, pin_memory=False)
    assert batch.weight.tolist() == [1.0, 0.0]
    assert batch.ids == ("clip 1", "")
    assert batch.visual is not None
    assert batch.visual[0].any()
    assert not batch.visual[1].any()


def test_a_clip_that_could_not_be_read_is_named(kept: tuple[Any, Path], tmp_path: Path) -> None:
    rows = [row for clip in CLIPS for row in cached_features._encode(kept[0], RUN, join([clip]))]
    names = [clip.name for clip in CLIPS]
    cached_features._write(part_path(tmp_path, 0), names, rows, ["clip 1: torn: at byte 3"])
    batch = batches(tmp_path, [0, 1, 2]).load(0, map, pin_memory=False)
    assert batch.faults == ("clip 1: torn: at byte 3",)
    assert batch.weight.tolist() == [1.0, 0.0, 1.0]
    whole = batches(kept[1], [2]).load(0, map, pin_memory=False)
    assert batch.visual is not None
    assert whole.visual is not None
    assert batch.visual[2, :4].equal(whole.visual[0])


def test_a_damaged_part_is_refused_by_name(kept: tuple[Any, Path], tmp_path: Path) -> None:
    for file in kept[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = part_path(tmp_path, 0)
    assert isinstance(read_part(path, verify=True), Part)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(ShardError, match=r"part-00000.safetensors: is damaged"):
        read_part(path, verify=True)


def test_features_of_other_encoders_are_named_with_what_differs(
    kept: tuple[Any, Path], tmp_path: Path
) -> None:
    old, new = tmp_path / "train-aaaa", tmp_path / "train-bbbb"
    old.mkdir()
    first = {"encoder weights": cached_features._hash_of_weights(kept[0]), "split": "x"}
    (old / "features.json").write_text(cached_features.json.dumps(first), encoding="utf-8")
    other = {"encoder weights": cached_features._hash_of_weights(small_model(seed=1)), "split": "x"}
    assert cached_features.stale(new, "train", other) == [
        f"features: {old} is not used: of other encoder weights"
    ]
