"""Features of frozen encoders, kept on disk: written in parts, verified, read clip by clip.

A folder holds ``part-00012.safetensors`` with the steps of consecutive clips, one clip after the
other (``visual`` and ``skeletal``, ``[steps, dim]``), and beside it ``part-00012.json`` with its
checksum, its clips and their steps. A part whose JSON is there is whole: the JSON is written last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from signfuse_dist.batch import SignBatch
from signfuse_dist.data.loader import Each, Encode, MicroBatchSequence, pictures_of, tokens_of
from signfuse_dist.data.manifest import Count, ShardError
from signfuse_dist.data.manifest_files import parse_json
from signfuse_dist.data.split import Split
from signfuse_dist.errors import UserError
from signfuse_dist.files import checksum, write_text, written_whole
from signfuse_dist.plan import PADDING, ClipFrames
from signfuse_dist.skeleton import NUM_JOINTS

CLIPS_A_PART = 64


@dataclass(frozen=True)
class Part:
    """What the JSON of a part says: its clips in the order of the split."""

    ids: tuple[str, ...]
    steps: tuple[int, ...]
    streams: tuple[str, ...]
    faults: Mapping[str, str]
    """What was wrong with the clips that could not be read; their features are zero."""


@dataclass(frozen=True)
class ClipFeatures:
    """``[steps, dim]`` of each stream that the model has."""

    visual: Tensor | None
    skeletal: Tensor | None


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part's tensors."""
    return folder / f"part-{number:05d}.safetensors"


def write_part(path: Path, tensors: Mapping[str, Tensor], part: Part) -> None:
    """Write a part, whole or not at all."""
    with written_whole(path) as file:
        file.write(save({name: t.contiguous() for name, t in tensors.items()}))
    clips = [
        {"id": name, "steps": steps, "fault": part.faults.get(name)}
        for name, steps in zip(part.ids, part.steps, strict=True)
    ]
    described = {"checksum": checksum(path), "streams": list(tensors), "clips": clips}
    write_text(path.with_suffix(".json"), json.dumps(described, ensure_ascii=False))


def read_part(path: Path, verify: bool) -> Part:
    """Read what a part holds, with ``verify`` after comparing its checksum; raise ShardError."""
    described = path.with_suffix(".json")
    try:
        fields = parse_json(_PART, described.read_bytes(), described.name)
        whole = not verify or checksum(path) == fields["checksum"]
    except OSError as error:
        raise ShardError(described.name, "", f"cannot be read ({error})") from error
    if not whole:
        raise ShardError(path.name, "", "is damaged: its checksum differs")
    clips = fields["clips"]
    return Part(
        ids=tuple(clip["id"] for clip in clips),
        steps=tuple(clip["steps"] for clip in clips),
        streams=tuple(fields["streams"]),
        faults={clip["id"]: fault for clip in clips if (fault := clip.get("fault"))},
    )


class _ClipFields(TypedDict):
    id: str
    steps: Count
    fault: NotRequired[str | None]


class _PartFields(TypedDict):
    checksum: str
    streams: list[str]
    clips: list[_ClipFields]


_PART = TypeAdapter(_PartFields)


class FeatureSet:
    """The features of every clip of a split."""

    def __init__(self, folder: Path, split: Split) -> None:
        """Read what the parts hold; raise ShardError when they are not those of the split."""
        self.folder = folder
        count = -(-len(split) // CLIPS_A_PART)
        self._parts = [read_part(part_path(folder, n), verify=False) for n in range(count)]
        if [name for part in self._parts for name in part.ids] != list(split.ids):
            raise ShardError(str(folder), "", "holds features of other clips")
        self._starts = [np.cumsum([0, *part.steps]) for part in self._parts]

    def empty(self) -> dict[str, Tensor]:
        """Return ``[0, dim]`` of each stream there is, of its type."""
        with safe_open(part_path(self.folder, 0), framework="pt") as file:
            return {name: file.get_slice(name)[0:0] for name in self._parts[0].streams}

    def read(self, place: int) -> ClipFeatures:
        """Read one clip's features; raise ShardError for a clip that was broken when they were
        computed, and for a part that is damaged.
        """
        number, inner = divmod(place, CLIPS_A_PART)
        part, path = self._parts[number], part_path(self.folder, number)
        name = part.ids[inner]
        if name in part.faults:
            raise UserError(part.faults[name])
        start, stop = (int(n) for n in self._starts[number][inner : inner + 2])
        try:
            with safe_open(path, framework="pt") as file:
                rows = {s: file.get_slice(s)[start:stop] for s in part.streams}
        except (OSError, SafetensorError) as error:
            raise ShardError(path.name, name, f"cannot be read ({error})") from error
        return ClipFeatures(rows.get("visual"), rows.get("skeletal"))


class FeatureBatches:
    """Micro batches of features and texts, as :class:`~.loader.ClipBatches` gives them of frames.

    A clip whose features cannot be read keeps its place with weight zero and is named.
    """

    def __init__(
        self,
        features: FeatureSet,
        split: Split,
        plan: MicroBatchSequence,
        frames: ClipFrames,
        encode: Encode,
        stride: int,
    ) -> None:
        """``stride`` is the frames a step, ``model.visual_stride``."""
        self._like, self._stride = features.empty(), stride
        self._features, self._split, self.plan = features, split, plan
        self._frames, self._encode = frames, encode
        self._texts = [entry.text for entry in split.entries()]

    def __len__(self) -> int:
        return len(self.plan)

    def load(self, item: int, each: Each, pin_memory: bool) -> SignBatch:
        """Return micro batch ``item``; ``each`` maps over its clips, which it may do in threads."""
        places, epoch = self.plan[item]
        clips = np.array(places)
        real = clips != PADDING
        lengths = np.ones(len(clips), dtype=np.int64)
        lengths[real] = self._frames.counts(epoch, clips[real])
        read = list(each(self._read_or_name, places))
        features = [clip if isinstance(clip, ClipFeatures) else None for clip in read]
        texts = ["" if f is None else self._texts[p] for f, p in zip(features, places, strict=True)]
        tokens, text_lengths = tokens_of(texts, self._encode)
        shown = pictures_of(self._split, clips)
        batch = SignBatch(
            ids=tuple(
                "" if f is None else self._split.ids[p]
                for f, p in zip(features, places, strict=True)
            ),
            frames=torch.empty(
                0, 3, self._split.frame_size, self._split.frame_size, dtype=torch.uint8
            ),
            pose=torch.empty(len(clips), 0, NUM_JOINTS, 2),
            joint_mask=torch.empty(len(clips), 0, NUM_JOINTS, dtype=torch.bool),
            frame_lengths=torch.from_numpy(lengths),
            weight=torch.tensor([0.0 if f is None else 1.0 for f in features]),
            tokens=tokens,
            text_lengths=text_lengths,
            faults=tuple(fault for fault in read if isinstance(fault, str)),
            draws=torch.from_numpy(self._frames.keys(epoch, np.where(real, clips, 0))),
            has_visual=None if shown is None else torch.from_numpy(shown),
            has_skeletal=(
                None if self._split.has_joints else torch.zeros(len(clips), dtype=torch.bool)
            ),
            **self._padded(features, lengths),
        )
        return batch.pin_memory() if pin_memory else batch

    def _read_or_name(self, place: int) -> ClipFeatures | str | None:
        if place == PADDING:
            return None
        try:
            return self._features.read(place)
        except UserError as error:
            return f"{self._split.ids[place]}: {error}"

    def _padded(
        self, features: Sequence[ClipFeatures | None], lengths: NDArray[np.int64]
    ) -> dict[str, Any]:
        """Return each stream ``[batch, steps, dim]``, zero beyond each clip's end."""
        longest, padded = int(-(-lengths.max() // self._stride)), {}
        for name, like in self._like.items():
            rows = padded[name] = like.new_zeros(len(features), longest, like.shape[1])
            for i, clip in enumerate(features):
                if clip is not None:
                    own = getattr(clip, name)
                    rows[i, : len(own)] = own
        return padded
