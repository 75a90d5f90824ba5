"""From packed shards to batches: random access by clip, in the order of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import DataConfig
from signfuse_dist.data.manifest import (
    Manifest,
    SampleEntry,
    ShardError,
    load_index,
    load_manifest,
)
from signfuse_dist.data.shard import Clip, read_clip
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.plan import PADDING
from signfuse_dist.skeleton import NUM_JOINTS

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Split:
    """A packed split in memory: one entry a clip, no pictures. Imports no torch to be listed."""

    folder: Path
    manifest: Manifest
    shards: tuple[str, ...]
    entries: tuple[SampleEntry, ...]

    def lengths(self, max_frames: int) -> list[int]:
        """Return the frames of each clip after sampling down to ``max_frames``."""
        return [min(entry.num_frames, max_frames) for entry in self.entries]


def open_split(folder: Path, data: DataConfig) -> Split:
    """Read a split's manifest and indexes and compare its packing with the configuration.

    Raises UserError when it is not packed, damaged, or packed with other settings.
    """
    manifest = load_manifest(folder)
    settings, errors = manifest.packing.settings, []
    if settings.frame_size != data.frame_size:
        errors.append(f"packed at frame_size {settings.frame_size}, asked {data.frame_size}")
    if settings.fps != data.fps:
        errors.append(f"packed at fps {settings.fps}, asked {data.fps}")
    raise_together(errors, f"{folder}: change data.* or pack again")
    found = [(e.name, s) for e in manifest.shards for s in load_index(folder, e).samples]
    if not found:
        raise UserError(f"{folder}: the split has no clips (see its dropped.tsv)")
    return Split(folder, manifest, tuple(n for n, _ in found), tuple(s for _, s in found))


def sampled_frames(num_frames: int, max_frames: int) -> list[int]:
    """Return which frames of a clip are used: all, or ``max_frames`` evenly spread ones.

    The same every time: nothing is drawn.
    """
    if num_frames <= max_frames:
        return list(range(num_frames))
    return [int((i + 0.5) * num_frames / max_frames) for i in range(max_frames)]


class ClipBatches(Dataset[SignBatch]):
    """Item i is the i-th micro batch: clips read, tokenised and collated in a worker.

    A clip that cannot be read keeps its place with weight zero and is named in ``faults``.
    """

    def __init__(
        self, split: Split, places: Sequence[Sequence[int]], max_frames: int,
        encode: Encode | None,
    ) -> None:  # fmt: skip
        self.split, self.places, self.max_frames = split, places, max_frames
        self.encode = encode

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> SignBatch:
        clips: list[Clip | None] = []
        faults: list[str] = []
        for place in self.places[item]:
            try:
                clips.append(None if place == PADDING else self.read(place))
            except UserError as e:
                clips.append(None)
                faults.append(f"{self.split.entries[place].id}: {e}")
        return collate(clips, self.split.manifest.packing.settings.frame_size, self.encode, faults)

    def read(self, place: int) -> Clip:
        """Read one clip, sampled down to ``max_frames``; raise ShardError when damaged."""
        entry, shard = self.split.entries[place], self.split.shards[place]
        frames = sampled_frames(entry.num_frames, self.max_frames)
        clip = read_clip(self.split.folder, shard, entry.members, frames)
        _refuse_damage(clip, entry, shard, self.split.manifest.packing.settings.frame_size)
        return clip


def _refuse_damage(clip: Clip, entry: SampleEntry, shard: str, frame_size: int) -> None:
    """Raise ShardError for damage that reading lets through and that training would not survive."""
    if any(clip.record.get(key) != getattr(entry, key) for key in ("id", "text", "num_frames")):
        raise ShardError(shard, entry.key, "the record does not agree with the index")
    if clip.frames.shape[1] != frame_size:
        raise ShardError(shard, entry.key, f"frames of {clip.frames.shape[1]}, not {frame_size}")
    if not np.isfinite(clip.pose).all():
        raise ShardError(shard, entry.key, "joints that are not finite")


def collate(
    clips: Sequence[Clip | None], frame_size: int, encode: Encode | None,
    faults: Sequence[str] = (),
) -> SignBatch:  # fmt: skip
    """Put clips into one batch; None is a place of weight zero: one black frame, no joints."""
    black = np.zeros((1, frame_size, frame_size, 3), dtype=np.uint8)
    frames = [black if clip is None else clip.frames for clip in clips]
    lengths = torch.tensor([len(f) for f in frames])
    longest = int(lengths.max())
    pose = np.zeros((len(clips), longest, NUM_JOINTS, 2), dtype=np.float32)
    mask = np.zeros((len(clips), longest, NUM_JOINTS), dtype=bool)
    for i, clip in enumerate(clips):
        if clip is not None:
            pose[i, : len(clip.pose)], mask[i, : len(clip.mask)] = clip.pose, clip.mask
    tokens, text_lengths = _tokens(clips, encode) if encode else (None, None)
    return SignBatch(
        ids=tuple("" if clip is None else clip.record["id"] for clip in clips),
        frames=torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2),
        pose=torch.from_numpy(pose),
        joint_mask=torch.from_numpy(mask),
        frame_lengths=lengths,
        weight=torch.tensor([0.0 if clip is None else 1.0 for clip in clips]),
        tokens=tokens,
        text_lengths=text_lengths,
        faults=tuple(faults),
    )


def batches(dataset: ClipBatches, num_workers: int, pin_memory: bool) -> Iterator[SignBatch]:
    """Yield the batches in order; the order is the plan's, so the loader draws nothing."""
    loader = DataLoader(
        dataset, batch_size=None, shuffle=False, num_workers=num_workers, pin_memory=pin_memory,
        multiprocessing_context="spawn" if num_workers else None,
    )  # fmt: skip
    return iter(loader)


def _tokens(clips: Sequence[Clip | None], encode: Encode) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [encode("" if clip is None else clip.record["text"]) for clip in clips]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths
