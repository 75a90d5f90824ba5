"""Augmentation: keyed by sample, one draw a clip, the same for pictures and joints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.little_splits import clip_batches, data_config, write_split
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.plan import PADDING, ClipFrames, Draw

ALL = AugmentConfig(crop=0.1, scale=0.2, colour=0.3, speed=0.5)
POINT = np.array([[28 / 96, 66 / 96]])  # between pixels of a picture of 96
LENGTHS = np.array([4, 1, 60, 33], dtype=np.int32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return open_split(write_split(tmp_path / "train"), data_config())


def draws(config: AugmentConfig, epoch: int = 0, seed: int = 1, clips: int = 2000) -> Draw:
    frames = ClipFrames(np.full(clips, 50, np.int32), 64, config, seed)
    drawn = frames.draw(epoch, np.arange(clips))
    assert drawn is not None
    return drawn


def test_without_augmentation_nothing_is_drawn_and_every_frame_is_kept() -> None:
    frames = ClipFrames(LENGTHS, 40, AugmentConfig(), seed=1)
    assert frames.draw(3, np.arange(4)) is None
    assert frames.counts(3, np.arange(4)).tolist() == [4, 1, 40, 33]


def test_what_is_drawn_stays_within_its_bounds_and_reaches_near_them() -> None:
    drawn = draws(ALL)
    bounds = {
        "zoom": (1 / 1.2, 1.2),
        "shift_x": (-0.1, 0.1),
        "shift_y": (-0.1, 0.1),
        "brightness": (0.7, 1.3),
        "contrast": (0.7, 1.3),
        "saturation": (0.7, 1.3),
        "speed": (1 / 1.5, 1.5),
    }
    for name, (low, high) in bounds.items():
        values = getattr(drawn, name)
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name
    columns = np.stack([getattr(drawn, name) for name in bounds])
    assert np.abs(np.corrcoef(columns) - np.eye(7)).max() < 0.1, "each is drawn by itself"


def test_a_draw_is_keyed_by_seed_epoch_and_clip() -> None:
    first = draws(ALL)
    assert np.array_equal(first.zoom, draws(ALL).zoom)
    assert not np.array_equal(first.zoom, draws(ALL, epoch=1).zoom)
    assert not np.array_equal(first.zoom, draws(ALL, seed=2).zoom)
    frames = ClipFrames(np.full(2000, 50, np.int32), 64, ALL, seed=1)
    some = frames.draw(0, np.array([7, 3, 7]))
    assert some is not None
    assert some.zoom.tolist() == first.zoom[[7, 3, 7]].tolist()


def test_speed_changes_the_number_of_frames_within_the_limits() -> None:
    clips = np.arange(4)
    counts = np.array([ClipFrames(LENGTHS, 64, ALL, seed).counts(0, clips) for seed in range(300)])
    assert counts.min() == 1
    assert counts[:, 2].max() == 64  # 60 frames at two thirds of the speed would be 90
    assert 22 <= counts[:, 3].min() < 33 < counts[:, 3].max() <= 50
    still = ClipFrames(LENGTHS, 64, AugmentConfig(crop=0.1, colour=0.1), 0)
    assert still.counts(0, clips).tolist() == [4, 1, 60, 33]


def test_a_batch_has_the_frames_that_the_plan_counted(split: Split) -> None:
    config = AugmentConfig(speed=0.5)
    for epoch in range(5):
        dataset = clip_batches(split, [[2, PADDING, 0]], augment=config, epoch=epoch)
        counted = dataset.frames.counts(epoch, np.array([2, 0])).tolist()
        batch = dataset[0]
        assert batch.frame_lengths.tolist() == [counted[0], 1, counted[1]]
        assert len(batch.frames) == sum(counted) + 1
        assert batch.pose.shape[1] == max(counted)


def test_frames_and_joints_of_a_faster_clip_are_the_same_ones(split: Split) -> None:
    """Clip 2's frames get brighter by 5 levels each; its joints do not change."""
    found = set()
    for epoch in range(12):
        config = AugmentConfig(speed=1.0)
        batch = clip_batches(split, [[2]], augment=config, epoch=epoch)[0]
        levels = batch.frames.float().mean(dim=(1, 2, 3))
        numbers = ((levels - 100) / 5).round().tolist()
        assert numbers == sorted(numbers)
        assert set(numbers) <= set(range(6))
        found.add(len(numbers))
    assert len(found) > 2


def picture_batch(config: AugmentConfig, points: np.ndarray, size: int = 96) -> SignBatch:
    """A clip of three equal frames with a white square drawn about each of its joints."""
    frames = np.zeros((3, size, size, 3), np.uint8)
    for x, y in points:
        row, column = int(y * size), int(x * size)
        frames[:, row - 3 : row + 3, column - 3 : column + 3] = 255
    drawn = ClipFrames(np.array([3], np.int32), 64, config, seed=4).draw(0, np.array([0]))
    assert drawn is not None
    moved = drawn.moved(points.astype(np.float32), 0)
    pose = torch.from_numpy(np.broadcast_to(moved, (1, 3, *moved.shape)).copy())
    return SignBatch(
        ids=("a",),
        frames=torch.from_numpy(frames).permute(0, 3, 1, 2),
        pose=pose,
        joint_mask=torch.ones(pose.shape[:3], dtype=torch.bool),
        frame_lengths=torch.tensor([3]),
        weight=torch.ones(1),
        warp=torch.from_numpy(drawn.warps()),
        colour=torch.from_numpy(drawn.colours()),
    )


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(crop=0.2), AugmentConfig(scale=0.5), AugmentConfig(crop=0.1, scale=0.3)],
)
def test_joints_go_where_the_picture_goes(config: AugmentConfig) -> None:
    batch = picture_batch(config, POINT)
    frames = batch.augmented().frames.float()
    assert torch.equal(frames[0], frames[2]), "consistent over the clip"
    weight = frames[1, 0] / frames[1, 0].sum()
    grid = (torch.arange(96) + 0.5) / 96
    centre = ((weight.sum(0) * grid).sum().item(), (weight.sum(1) * grid).sum().item())
    assert centre == pytest.approx(batch.pose[0, 1, 0].tolist(), abs=0.005)
    assert centre != pytest.approx(POINT[0].tolist(), abs=0.01)


def test_beyond_a_picture_its_edge_goes_on() -> None:
    """A stripe of black would be as wide as the clip was moved, and a network reads it."""
    batch = picture_batch(AugmentConfig(crop=0.2, scale=0.5), POINT)
    assert not torch.equal(batch.augmented().frames, batch.frames)
    wall = replace(batch, frames=torch.full_like(batch.frames, 200))
    assert torch.equal(wall.augmented().frames, wall.frames)


def test_frames_without_change_come_out_as_they_went_in() -> None:
    batch = picture_batch(AugmentConfig(speed=0.5), POINT)
    assert batch.warp is not None
    after = batch.augmented()
    assert torch.equal(after.frames, batch.frames)
    assert after.warp is None
    assert after.frames.dtype == torch.uint8


def test_colours_follow_their_definition() -> None:
    drawn = draws(AugmentConfig(colour=0.4), clips=5)
    rgb = np.array([0.2, 0.6, 0.3])
    for i in range(5):
        luma = rgb @ [0.299, 0.587, 0.114]
        mixed = luma + drawn.saturation[i] * (rgb - luma)
        expected = 0.5 + drawn.contrast[i] * (drawn.brightness[i] * mixed - 0.5)
        assert drawn.colours()[i] @ [*rgb, 1] == pytest.approx(expected, abs=1e-6)


def test_missing_joints_stay_at_zero_when_the_others_move(split: Split) -> None:
    batch = clip_batches(split, [[2, 0]], augment=AugmentConfig(crop=0.3))[0]
    assert not batch.pose[~batch.joint_mask].any()
    plain = clip_batches(split, [[2, 0]])[0]
    assert plain.warp is None
    assert torch.equal(batch.joint_mask, plain.joint_mask)
    shift = (batch.pose - plain.pose)[0][plain.joint_mask[0]]
    assert shift.abs().min() > 0
    assert (shift - shift[0]).abs().max() < 1e-6


def test_many_frames_are_changed_clip_by_clip_in_the_right_order() -> None:
    lengths = [70, 1, 90]  # more than are changed at once
    drawn = ClipFrames(np.array(lengths, np.int32), 100, AugmentConfig(colour=0.5), 3)
    one = drawn.draw(0, np.arange(3))
    assert one is not None
    frames = torch.full((161, 3, 8, 8), 100, dtype=torch.uint8)
    batch = SignBatch(
        ids=("a", "b", "c"),
        frames=frames,
        pose=torch.zeros(3, 90, 75, 2),
        joint_mask=torch.zeros(3, 90, 75, dtype=torch.bool),
        weight=torch.ones(3),
        frame_lengths=torch.tensor(lengths),
        warp=torch.from_numpy(one.warps()),
        colour=torch.from_numpy(one.colours()),
    )
    levels = batch.augmented().frames[:, 0, 0, 0].tolist()
    expected = one.colours() @ np.array([100 / 255, 100 / 255, 100 / 255, 1]) * 255
    assert levels[:70] == [round(float(expected[0, 0]))] * 70
    assert levels[70] == round(float(expected[1, 0]))
    assert levels[71:] == [round(float(expected[2, 0]))] * 90
