"""What training hides of a clip: a stream, spans of time, where a joint is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.little_splits import clip_batches, data_config, write_split
from helpers.model_factory import draw_clips, join, small_model
from helpers.repository import ROOT
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data import loader
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.plan import PADDING, ClipFrames, Hidden

HIDING = AugmentConfig(drop_stream=0.4, mask_spans=0.3, joint_noise=0.01)
CLIPS = np.arange(5000)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return open_split(write_split(tmp_path / "train"), data_config())


def hidden(config: AugmentConfig = HIDING, epoch: int = 0, seed: int = 1) -> Hidden:
    found = ClipFrames(np.full(5000, 50, np.int32), 64, config, seed).hidden(epoch, CLIPS)
    assert found is not None
    return found


def test_as_many_clips_lose_a_stream_as_asked_for_and_none_loses_both() -> None:
    found = hidden()
    for lost in (found.pictures, found.joints):
        assert lost.mean() == pytest.approx(0.2, abs=0.02)
    assert not (found.pictures & found.joints).any()
    assert ClipFrames(CLIPS, 64, AugmentConfig(crop=0.1), 1).hidden(0, CLIPS) is None
    none = hidden(AugmentConfig(mask_spans=0.1))
    assert not (none.pictures | none.joints).any()
    assert hidden(AugmentConfig(drop_stream=0.1)).spans is None


def test_spans_lie_in_the_clip_and_are_no_longer_than_asked_for() -> None:
    spans = hidden().spans
    assert spans is not None
    lengths = spans[..., 1] - spans[..., 0]
    assert lengths.min() >= 0
    assert 0.29 < lengths.max() <= 0.3 + 1e-6
    assert spans.min() < 0.01
    assert 0.99 < spans.max() <= 1 + 1e-6
    columns = np.concatenate((lengths, spans[..., 0]), axis=1).T
    assert np.abs(np.corrcoef(columns)[:2, :2] - np.eye(2)).max() < 0.05  # each stream its own


def test_what_is_hidden_follows_from_seed_epoch_and_clip_alone() -> None:
    first = hidden()
    assert np.array_equal(first.pictures, hidden().pictures)
    for other in (hidden(epoch=1), hidden(seed=2)):
        assert not np.array_equal(first.pictures, other.pictures)
        assert not np.array_equal(first.spans, other.spans)
    frames = ClipFrames(np.full(9, 50, np.int32), 64, HIDING, seed=1)
    some = frames.hidden(np.array([0, 0, 1]), np.array([7, 3, 7]))  # as a blend counts
    assert some is not None
    assert some.pictures[:2].tolist() == first.pictures[[7, 3]].tolist()
    assert some.pictures[2] == hidden(epoch=1).pictures[7]
    keys = frames.keys(0, np.arange(9))
    assert len(set(keys.tolist())) == 9
    assert keys.min() >= 0
    assert np.array_equal(frames.keys(np.array([0, 0]), np.array([4, 2])), keys[[4, 2]])


def test_a_clip_is_the_same_in_any_micro_batch(split: Split) -> None:
    """So it is on any number of processes."""
    for epoch in range(6):
        whole = clip_batches(split, [[2, 0, PADDING, 1]], augment=HIDING, epoch=epoch)[0]
        alone = clip_batches(split, [[2], [0], [PADDING], [1]], augment=HIDING, epoch=epoch)
        assert whole.spans is not None
        assert whole.draws is not None
        start = 0
        for place, other in enumerate(alone[i] for i in range(4)):
            assert other.spans is not None
            assert other.draws is not None
            assert torch.equal(whole.spans[place], other.spans[0])
            assert whole.draws[place] == other.draws[0]
            length = int(other.frame_lengths[0])
            assert torch.equal(whole.pose[place, :length], other.pose[0])
            for name in ("known_visual", "known_skeletal"):
                known = getattr(whole, name) or (True,) * 4
                assert known[place] == (getattr(other, name) or (True,))[0]
            shown = int(whole.picture_lengths[place])
            assert torch.equal(whole.frames[start : start + shown], other.frames)
            start += shown


def test_pictures_that_a_clip_loses_are_not_decoded(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = loader.read_clip

    def counted(*given: object, into: np.ndarray, **named: object) -> object:
        asked.append(len(into))
        return read(*given, into=into, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "read_clip", counted)
    seen = set()
    for epoch in range(20):
        batch = clip_batches(split, [[2]], augment=AugmentConfig(drop_stream=0.6), epoch=epoch)[0]
        lost = (batch.known_visual or (True,))[0], (batch.known_skeletal or (True,))[0]
        assert asked.pop() == len(batch.frames) == (6 if lost[0] else 0)
        assert batch.joint_mask.any()
        assert batch.weight.tolist() == [1]
        seen.add(lost)
    assert seen == {(True, True), (True, False), (False, True)}


def test_joints_move_by_as_much_as_asked_for_and_missing_ones_stay(split: Split) -> None:
    config = AugmentConfig(joint_noise=0.02)
    still, moved = clip_batches(split, [[2]])[0], clip_batches(split, [[2]], augment=config)[0]
    apart = (moved.pose - still.pose)[still.joint_mask]
    assert float(apart.std()) == pytest.approx(0.02, rel=0.1)
    assert float(apart.mean()) == pytest.approx(0, abs=0.002)
    assert not moved.pose[~still.joint_mask].any()
    again = clip_batches(split, [[0, 2]], augment=config)[0]
    assert torch.equal(again.pose[1, :6], moved.pose[0, :6])
    other = clip_batches(split, [[2]], augment=config, epoch=1)[0]
    assert not torch.equal(other.pose, moved.pose)


@torch.no_grad()
def test_spans_hide_features_of_either_stream_and_nothing_else() -> None:
    model = small_model()
    batch = join(draw_clips([16, 7]))
    seen = model.encode(batch)
    spans = torch.tensor([[[0.25, 0.5], [0.0, 0.0]], [[0.6, 1.0], [0.0, 0.3]]])
    object.__setattr__(batch, "spans", spans)
    found = model.encode(batch)
    expected = seen.visual.clone()
    expected[0, 2:4] = 0  # of 8 steps those with their middle in the second quarter
    expected[1, 2:4] = 0  # of 4 the last two
    assert torch.equal(found.visual, expected)
    expected = seen.skeletal.clone()
    expected[1, 0] = 0
    assert torch.equal(found.skeletal, expected)


def test_a_model_of_one_stream_has_none_to_lose() -> None:
    demo = str(ROOT / "configs" / "experiment" / "demo.yaml")
    words = ["model.streams=skeletal", "train.stages=[finetune]", "loss.contrastive_weight=0"]
    load_run(demo, "finetune", ["augment.drop_stream=0.2"])
    with pytest.raises(UserError, match=r"drop_stream=0.2.*write augment.drop_stream=0"):
        load_run(demo, "finetune", [*words, "augment.drop_stream=0.2"])
