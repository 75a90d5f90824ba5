"""From packed shards to batches: random access by clip, in the order of the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from signfuse_dist.augment import ClipFrames, Draw, spread_frames
from signfuse_dist.batch import SignBatch
from signfuse_dist.data.manifest import ShardError
from signfuse_dist.data.shard import Clip, read_clip
from signfuse_dist.data.split import Split, record_digest
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, MicroBatch
from signfuse_dist.skeleton import NUM_JOINTS

Encode = Callable[[str], list[int]]
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class MicroBatchSequence(Protocol):
    """What the loader asks of a plan; a list will do."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> MicroBatch: ...


class ClipBatches(Dataset[SignBatch]):
    """Item i is the i-th micro batch: clips read, tokenised and collated in a worker.

    A clip that cannot be read keeps its place with weight zero and is named in ``faults``.
    """

    def __init__(
        self, split: Split, plan: MicroBatchSequence, frames: ClipFrames, encode: Encode | None
    ) -> None:
        """``encode`` turns a text into tokens; None where no language model is trained."""
        self.split, self.plan, self.frames, self.encode = split, plan, frames, encode

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> SignBatch:
        places, epoch = self.plan[item]
        clips = np.array(places)
        real = clips != PADDING
        lengths = np.ones(len(clips), dtype=np.int64)
        lengths[real] = self.frames.counts(epoch, clips[real])
        drawn = self.frames.draw(epoch, np.where(real, clips, 0))
        return self._read(places, lengths, drawn)

    def _read(
        self, places: Sequence[int], lengths: NDArray[np.int64], drawn: Draw | None
    ) -> SignBatch:
        """Decode each clip straight to its place among the batch's frames."""
        size = self.split.frame_size
        frames = _empty_frames(int(lengths.sum()), size)
        pixels, used = frames.numpy(), 0
        clips: list[Clip | None] = []
        faults: list[str] = []
        for place, length in zip(places, lengths.tolist(), strict=True):
            clip = None
            try:
                if place != PADDING:
                    clip = self._read_clip(place, pixels[used : used + length])
            except UserError as e:
                faults.append(f"{self.split.ids[place]}: {e}")
            if clip is None:
                length = 1
                pixels[used] = 0
            clips.append(clip)
            used += length
        return collate(clips, frames[:used], self.encode, faults, drawn)

    def _read_clip(self, place: int, into: NDArray[np.uint8]) -> Clip:
        """Read as many frames of a clip as ``into`` holds; raise ShardError when it is damaged."""
        split, shard = self.split, self.split.shard_of(place)
        indices = spread_frames(int(split.lengths[place]), len(into))
        members = split.members_of(place)
        clip = read_clip(split.folder, shard, members, indices, split.cache, into)
        record = clip.record
        said = record_digest(record["id"], str(record.get("text")), record["num_frames"])
        if said != int(split.digests[place]):
            raise ShardError(shard, split.ids[place], "the record does not agree with the index")
        if not np.isfinite(clip.pose).all():
            raise ShardError(shard, split.ids[place], "joints that are not finite")
        return clip


def collate(
    clips: Sequence[Clip | None], frames: Tensor, encode: Encode | None,
    faults: Sequence[str] = (), drawn: Draw | None = None,
) -> SignBatch:  # fmt: skip
    """Put clips into one batch; None is a place of weight zero: one black frame, no joints.

    ``frames`` uint8 ``[sum of frames, height, width, 3]`` are those of all clips, one clip after
    the other. ``drawn`` moves the joints, and goes with the batch for the frames.
    """
    lengths = torch.tensor([1 if clip is None else len(clip.pose) for clip in clips])
    longest = int(lengths.max())
    pose = np.zeros((len(clips), longest, NUM_JOINTS, 2), dtype=np.float32)
    mask = np.zeros((len(clips), longest, NUM_JOINTS), dtype=bool)
    for i, clip in enumerate(clips):
        if clip is not None:
            moved = clip.pose if drawn is None else drawn.moved(clip.pose, i)
            pose[i, : len(moved)] = np.where(clip.mask[..., None], moved, 0)
            mask[i, : len(moved)] = clip.mask
    tokens, text_lengths = _tokens(clips, encode) if encode else (None, None)
    return SignBatch(
        ids=tuple("" if clip is None else clip.record["id"] for clip in clips),
        frames=frames.permute(0, 3, 1, 2),
        pose=torch.from_numpy(pose),
        joint_mask=torch.from_numpy(mask),
        frame_lengths=lengths,
        weight=torch.tensor([0.0 if clip is None else 1.0 for clip in clips]),
        tokens=tokens,
        text_lengths=text_lengths,
        faults=tuple(faults),
        warp=None if drawn is None else torch.from_numpy(drawn.warps()),
        colour=None if drawn is None else torch.from_numpy(drawn.colours()),
    )


def batches(dataset: ClipBatches, num_workers: int, pin_memory: bool) -> Iterator[SignBatch]:
    """Yield the batches in order; the order is the plan's, so the loader draws nothing."""
    loader = DataLoader(
        dataset, batch_size=None, shuffle=False, num_workers=num_workers, pin_memory=pin_memory,
        multiprocessing_context="spawn" if num_workers else None,
    )  # fmt: skip
    return iter(loader)


def count_workers(asked: int | None) -> int:
    """Return how many loader processes this training process starts.

    None asks for its share of the cores, less one for itself. Raises UserError where more are
    asked for than there are cores for all training processes of this machine.
    """
    cores, processes = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked is None:
        return max(0, cores // processes - 1)
    if asked * processes > cores:
        raise UserError(
            f"train.num_workers {asked} x {processes} processes on this machine: more than the "
            f"{cores} cores it gives (Slurm: --cpus-per-task); leave it out to use what there is"
        )
    return asked


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or one without a quota ("max")
        return cores


def _empty_frames(count: int, size: int) -> Tensor:
    """Return uint8 ``[count, size, size, 3]``; in a worker, where the trainer can see it.

    Otherwise the loader would copy every batch once more on its way out of the worker.
    """
    shape = (count, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count * size * size * 3)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _tokens(clips: Sequence[Clip | None], encode: Encode) -> tuple[Tensor, Tensor]:
    rows = [encode("" if clip is None else clip.record["text"]) for clip in clips]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths
