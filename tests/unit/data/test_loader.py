"""Batches from packed shards: what is in them, and what happens to a clip that is damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.little_clips import write_corpus
from helpers.little_splits import (
    SHARD,
    SIZE,
    clip_batches,
    damage,
    data_config,
    encode,
    write_split,
)
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.joints import Joints, PoseExtractor, stacked
from signfuse_dist.data.loader import batches, count_workers, usable_cores
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import extract_poses, pack
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.data.staging import stage
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, spread_frames
from signfuse_dist.skeleton import NUM_JOINTS


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return open_split(write_split(tmp_path / "train"), data_config())


def test_a_batch_carries_the_real_frames_one_after_the_other_and_nothing_else(split: Split) -> None:
    batch = clip_batches(split, [[2, 0, 1]], 64, encode)[0]
    assert batch.ids == ("clip 2", "clip 0", "clip 1")
    assert batch.frame_lengths.tolist() == [6, 4, 1]
    assert batch.frames.shape == (11, 3, SIZE, SIZE)
    assert batch.frames.dtype == torch.uint8
    levels = batch.frames.float().mean(dim=(1, 2, 3))
    expected = [100 + 5 * i for i in range(6)] + [5 * i for i in range(4)] + [50]
    assert levels.tolist() == pytest.approx(expected, abs=2)
    assert batch.weight.tolist() == [1, 1, 1]
    assert batch.faults == ()


def test_joints_masks_and_tokens_stand_before_the_padding(split: Split) -> None:
    batch = clip_batches(split, [[2, 0]], 64, encode)[0]
    assert batch.pose.shape == (2, 6, NUM_JOINTS, 2)
    assert batch.pose.dtype == torch.float32
    assert batch.joint_mask.dtype == torch.bool
    assert (batch.pose[0, :, 3] == 3).all()
    assert not batch.joint_mask[0, :, 2].any()
    assert batch.joint_mask[1, :4].sum() == 4 * (NUM_JOINTS - 1)
    assert not batch.joint_mask[1, 4:].any()
    assert not batch.pose[1, 4:].any()
    assert batch.text_lengths is not None
    assert batch.tokens is not None
    assert batch.text_lengths.tolist() == [7, 3]
    assert batch.tokens.tolist() == [[1, 2, 1, 2, 1, 2, 9], [1, 2, 9, 0, 0, 0, 0]]


def test_a_stage_without_an_llm_gets_no_tokens(split: Split) -> None:
    batch = clip_batches(split, [[0]], 64, None)[0]
    assert batch.tokens is None
    assert batch.text_lengths is None


def test_a_padding_place_has_weight_zero_and_keeps_its_place(split: Split) -> None:
    batch = clip_batches(split, [[0, PADDING, 3]], 64, encode)[0]
    assert batch.ids == ("clip 0", "", "clip 3")
    assert batch.weight.tolist() == [1, 0, 1]
    assert batch.frame_lengths.tolist() == [4, 1, 3]
    assert not batch.frames[4].any()
    assert not batch.joint_mask[1].any()
    assert batch.text_lengths is not None
    assert int(batch.text_lengths[1]) >= 1  # a length of zero would make an empty softmax
    assert batch.faults == ()


def test_a_batch_of_padding_alone_can_be_made(split: Split) -> None:
    batch = clip_batches(split, [[PADDING, PADDING]], 64, encode)[0]
    assert batch.weight.tolist() == [0, 0]
    assert batch.frames.shape == (2, 3, SIZE, SIZE)


DAMAGES: dict[str, tuple[str, bytes, int]] = {
    "a torn JPEG": ("jpegs", bytes(40), 0),
    "no record": ("json", b"\xff\xfe{", 0),
    "offsets that go backwards": ("offsets.npy", b"\xff" * 16, 136),
    "no array": ("pose.npy", b"NOTNUMPY", 0),
    "a joint at infinity": ("pose.npy", np.array([np.inf], np.float32).tobytes(), 128),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_clip_has_weight_zero_and_a_name_and_costs_no_other(
    split: Split, name: str
) -> None:
    before = clip_batches(split, [[0, 1, 3]], 64, encode)[0]
    damage(split, 2, *DAMAGES[name])
    batch = clip_batches(split, [[0, 2, 1, 3]], 64, encode)[0]
    assert batch.weight.tolist() == [1, 0, 1, 1]
    assert batch.ids == ("clip 0", "", "clip 1", "clip 3")
    (fault,) = batch.faults
    assert "clip 2" in fault
    assert SHARD in fault
    assert "signfuse verify" in fault
    kept = torch.cat([batch.frames[:4], batch.frames[10:]])
    assert torch.equal(kept, before.frames)
    assert not batch.frames[4:10].any()
    assert torch.equal(batch.pose[[0, 2, 3], :4], before.pose)
    assert not batch.joint_mask[1].any()


@pytest.mark.parametrize(
    "change", [(b'"clip 2"', b'"clip 7"'), (b"ababab", b"abXbab"), (b'frames": 6', b'frames": 3')]
)
def test_a_record_that_is_not_the_indexed_one_is_a_fault(
    split: Split, change: tuple[bytes, bytes]
) -> None:
    path = split.folder / SHARD
    content = path.read_bytes()
    offset, size = split.members_of(2)["json"]
    record = content[offset : offset + size]
    assert change[0] in record
    damage(split, 2, "json", record.replace(*change))
    batch = clip_batches(split, [[0, 2]], 64, encode)[0]
    assert batch.weight.tolist() == [1, 0]
    assert len(batch.faults) == 1


def test_a_torn_tar_is_refused_by_name_when_the_split_is_opened(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "train")
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{SHARD}: torn: {len(content) // 2} of {len(content)}"):
        open_split(folder, data_config())


def test_a_tar_that_is_torn_after_it_was_opened_costs_its_clips_only(split: Split) -> None:
    path, start = split.folder / SHARD, split.members_of(2)["jpegs"][0]
    path.write_bytes(path.read_bytes()[: start + 10])
    batch = clip_batches(split, [[0, 1, 2, 3]], 64, encode)[0]
    assert batch.weight.tolist() == [1, 1, 0, 0]
    assert [fault.partition(":")[0] for fault in batch.faults] == ["clip 2", "clip 3"]


@pytest.mark.parametrize(
    ("num_frames", "count"), [(5, 5), (1, 1), (100, 7), (8, 7), (9, 1), (4, 9)]
)
def test_spread_frames_are_in_order_even_and_always_the_same(num_frames: int, count: int) -> None:
    frames = spread_frames(num_frames, count)
    assert frames == spread_frames(num_frames, count)
    assert len(frames) == count
    assert all(0 <= f < num_frames for f in frames)
    steps = np.diff(frames)
    assert (steps >= 0).all()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    if num_frames == count:
        assert frames == list(range(num_frames))


def test_a_long_clip_is_sampled_frames_and_joints_alike(split: Split) -> None:
    batch = clip_batches(split, [[2]], 3, encode)[0]
    assert batch.frame_lengths.tolist() == [3]
    levels = batch.frames.float().mean(dim=(1, 2, 3))
    assert levels.tolist() == pytest.approx([105, 115, 125], abs=2)
    assert batch.pose.shape[1] == 3


def test_a_clip_of_one_frame_is_a_batch_of_its_own(split: Split) -> None:
    batch = clip_batches(split, [[1]], 64, encode)[0]
    assert batch.frame_lengths.tolist() == [1]
    assert batch.frames.shape == (1, 3, SIZE, SIZE)
    assert batch.weight.tolist() == [1]


def test_a_split_packed_otherwise_is_refused_with_both_values(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "train")
    with pytest.raises(UserError) as refused:
        open_split(folder, data_config(frame_size=64, fps=25.0))
    message = str(refused.value)
    assert f"packed at frame_size {SIZE}, asked 64" in message
    assert "packed at fps 10.0, asked 25.0" in message
    assert str(folder) in message


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the split has no clips"):
        open_split(write_split(tmp_path / "train", ()), data_config())


def test_a_folder_that_was_not_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished split"):
        open_split(tmp_path, data_config())


def same(one: SignBatch, two: SignBatch) -> bool:
    if (one.ids, one.faults) != (two.ids, two.faults):
        return False
    tensors = [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in tensors)


def test_threads_give_the_batches_of_none_in_order(split: Split) -> None:
    damage(split, 3, "jpegs", bytes(40))
    places = [[0, 1], [2, PADDING], [3, 0], [1, 2], [0, 0]]
    augment = AugmentConfig(crop=0.1, speed=0.3)
    dataset = clip_batches(split, places, 4, encode, augment)
    alone, ahead = list(batches(dataset, 0, False)), list(batches(dataset, 3, False))
    assert len(alone) == len(ahead) == len(places)
    assert all(same(one, two) for one, two in zip(alone, ahead, strict=True))
    assert len(ahead[2].faults) == 1


class Recorded:
    """Batches of any number of bytes, and how many were begun."""

    def __init__(self, nbytes: int) -> None:
        self.begun = threading.Semaphore(0)
        self.batch = SimpleNamespace(nbytes=nbytes)

    def __len__(self) -> int:
        return 100

    def load(self, item: int, each: Any, pin_memory: bool) -> Any:
        self.begun.release()
        return self.batch

    def count(self) -> int:
        """Return how many were begun, when no more are for a moment."""
        number = 0
        while self.begun.acquire(timeout=0.3):
            number += 1
        return number


@pytest.mark.parametrize(
    ("window", "nbytes", "begun"),
    [(1, 1, 2), (4, 1, 5), (4, 1 << 40, 1), (8, 1 << 29, 3)],
    ids=["a batch", "a window", "no window fits", "four fit"],
)
def test_a_window_waits_while_the_one_before_is_computed_as_far_as_memory_holds_it(
    window: int, nbytes: int, begun: int
) -> None:
    dataset: Any = Recorded(nbytes)
    source = batches(dataset, 1, False, window=window)
    taken = [next(source) for _ in range(2 * window)]
    assert dataset.count() == len(taken) + begun
    source.close()


def test_reading_ahead_can_be_given_up(split: Split) -> None:
    before = threading.active_count()
    source = batches(clip_batches(split, [[0, 1]] * 50), 2, False)
    next(source)
    source.close()
    assert threading.active_count() == before


def test_an_error_that_is_no_clip_s_reaches_the_trainer(split: Split) -> None:
    def broken(_: str) -> list[int]:
        raise RuntimeError("no such token")

    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="no such token"):
            list(batches(clip_batches(split, [[0]], 64, broken), workers, False))


def test_memory_is_used_again_only_when_nothing_looks_at_it(split: Split) -> None:
    dataset = clip_batches(split, [[2], [0], [1], [3]])
    first = dataset[0]
    view, kept = first.frames[:, 0], first.frames.clone()
    place = first.frames.data_ptr()
    del first
    second = dataset[1]
    assert second.frames.data_ptr() != place, "a view still looks at the first"
    assert torch.equal(view, kept[:, 0])
    del view
    assert dataset[2].frames.data_ptr() == place
    assert torch.equal(second.frames, clip_batches(split, [[0]])[0].frames)


def test_a_longer_batch_fits_into_the_memory_of_a_shorter_one(split: Split) -> None:
    shortest, longest = split.lengths.argmin(), split.lengths.argmax()
    dataset = clip_batches(split, [[int(shortest)], [int(longest)]])
    first = dataset[0]
    frames, place = len(first.frames), first.frames.data_ptr()
    del first
    second = dataset[1]
    assert len(second.frames) > frames
    assert second.frames.data_ptr() == place


def test_workers_take_the_cores_there_are_and_never_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("signfuse_dist.data.loader._CPU_QUOTA", Path("/nowhere"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_workers(None) == 3
    assert count_workers(4) == 4
    with pytest.raises(UserError, match=r"num_workers 5 x 4 processes .* more than the 16 cores"):
        count_workers(5)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert count_workers(None) == 0


@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000\n", 8), ("300000 100000\n", 3), ("50000 100000\n", 1), ("", 8)],
)
def test_the_quota_of_a_container_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(written)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("signfuse_dist.data.loader._CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == cores


class Elsewhere(PoseExtractor):
    """Finds every joint of every frame in one place, which is the clip's number of frames."""

    name, version = "elsewhere", "1"

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        count = len(list(frames))
        return Joints(*stacked([np.full((NUM_JOINTS, 2), count, np.float32)] * count))


@pytest.fixture
def with_poses(tmp_path: Path) -> Path:
    table, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    pack("table", table, "train", out, PackConfig(frame_size=32), workers=0)
    extract_poses("table", table, "train", out, "other", workers=0, extractor=Elsewhere())
    return out


def test_joints_come_from_the_pose_set_that_is_named(with_poses: Path, tmp_path: Path) -> None:
    own = open_split(with_poses, data_config(fps=None))
    other = open_split(with_poses, data_config(fps=None, poses="other"))
    one, two = clip_batches(own, [[0, 2]])[0], clip_batches(other, [[0, 2]])[0]
    assert torch.equal(one.frames, two.frames)
    assert one.frame_lengths.tolist() == [6, 8]
    assert two.pose[0, :6].unique().tolist() == [6]
    assert two.pose[1].unique().tolist() == [8]
    assert one.pose.max() < 1
    copied = stage(other, str(tmp_path / "node"))
    assert torch.equal(clip_batches(copied, [[0, 2]])[0].pose, two.pose)
    assert copied.poses is not None
    assert copied.poses.folder != copied.folder


def test_a_pose_set_that_is_missing_or_of_other_clips_is_refused(with_poses: Path) -> None:
    with pytest.raises(UserError, match=r"data\.poses=none: .*no finished split"):
        open_split(with_poses, data_config(fps=None, poses="none"))
    manifest = with_poses / "poses" / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"root": "corpus.tsv"', '"root": "x.tsv"'))
    with pytest.raises(UserError, match=r"data\.poses=other"):
        open_split(with_poses, data_config(fps=None, poses="other"))
