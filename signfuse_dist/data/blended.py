"""The training splits of a blend, held as one: the clips of one corpus after those of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.arrangement import PICTURE
from signfuse_dist.blend import Blend, choose_clips, share_draws
from signfuse_dist.config import RunConfig
from signfuse_dist.data.manifest import feature_path
from signfuse_dist.data.manifest_files import load_manifest, read_manifest
from signfuse_dist.data.split import Split, VectorSplit, open_split, read_source
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.plan import ClipFrames, FramesOf

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class BlendedSplit:
    """Splits of several corpora; a place is that of a clip among those of all of them.

    Attributes:
        names: of the corpora, as ``data.blend`` calls them.
        splits: their training splits.
        chosen: which clips of each are used, ``[clips]``; None: all.
    """

    names: tuple[str, ...]
    splits: tuple[Split, ...]
    chosen: tuple[NDArray[np.int64] | None, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Clips of each corpus that are used."""
        pairs = zip(self.splits, self.chosen, strict=True)
        return tuple(len(split) if few is None else len(few) for split, few in pairs)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Frames as stored, ``[clips]``."""
        return np.concatenate(self._used([split.lengths for split in self.splits]))

    @cached_property
    def has_pictures(self) -> NDArray[np.bool_]:
        """Whether each clip has frames and not joints alone, ``[clips]``."""
        return np.concatenate(self._used([split.has_pictures for split in self.splits]))

    @property
    def frame_size(self) -> int:
        """Side of the stored square, in pixels."""
        return self.splits[0].frame_size

    @property
    def vectors(self) -> tuple[VectorSplit, ...]:
        """The feature sets in use, as the first corpus has them."""
        return self.splits[0].vectors

    @property
    def vector_dim(self) -> int:
        """Numbers of a frame in the feature sets in use, all together."""
        return self.splits[0].vector_dim

    @property
    def extraction(self) -> tuple[str, str]:
        """Name and version of what found the joints of the first corpus that has joints."""
        found = (split for split in self.splits if split.has_joints)
        return next(found, self.splits[0]).extraction

    @property
    def contents(self) -> dict[str, dict[str, str | None]]:
        """What training sees of each corpus, by name, as checksums."""
        pairs = zip(self.names, self.splits, strict=True)
        return {name: asdict(split.content) for name, split in pairs}

    def loads(self, frames: ClipFrames) -> FramesOf:
        """Return how much clips take, so that processes get alike: in frames of joints alone.

        Where some have no pictures; else all that counts is how many frames each has.
        """
        if self.has_pictures.all():
            return frames.counts
        weights = np.where(self.has_pictures, PICTURE + 1, 1)
        return lambda times, clips: frames.counts(times, clips) * weights[clips]

    def locate(self, place: int) -> tuple[Split, int]:
        """Return the split of a clip, and its place there."""
        number = int(self.corpora_of(np.array([place]))[0])
        within, few = place - int(self._ends[number] - self.sizes[number]), self.chosen[number]
        return self.splits[number], within if few is None else int(few[within])

    def name_of(self, place: int) -> str:
        """Return the name of a clip: its corpus's before its own."""
        split, within = self.locate(place)
        return f"{self.names[int(self.corpora_of(np.array([place]))[0])]}/{split.ids[within]}"

    def corpora_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the corpus of each clip, ``[clips]``."""
        return np.searchsorted(self._ends, places, side="right")

    def tracked(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether anybody has looked for joints in each of these clips, ``[clips]``."""
        return np.array([split.has_joints for split in self.splits])[self.corpora_of(places)]

    def each(self, change: Callable[[Split], Split]) -> BlendedSplit:
        """Return the blend with ``change`` made to each of its splits."""
        return replace(self, splits=tuple(map(change, self.splits)))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(np.array(self.sizes, dtype=np.int64))

    def _used(self, columns: Sequence[NDArray[_T]]) -> list[NDArray[_T]]:
        pairs = zip(columns, self.chosen, strict=True)
        return [column if few is None else column[few] for column, few in pairs]


def open_training(run: RunConfig) -> Split | BlendedSplit:
    """Open what a run is trained on: the training split, or those of its blend.

    Raises UserError with what is wrong with any of them.
    """
    if not run.data.blend:
        return open_split(run.shards(run.data.train_split), run.data, run.model.feature_sets)
    splits, errors = [], []
    for part in run.corpora:
        try:
            place = part.data.place(part.data.train_split)
            splits.append(open_split(place, part.data, run.model.feature_sets))
        except UserError as e:
            errors.append(f"{part.corpus}: {e}")
    widths = {split.vector_dim for split in splits}
    if len(widths) > 1:
        names = ", ".join(run.model.feature_sets)
        errors.append(f"their feature sets {names} have {sorted(widths)} numbers a frame")
    raise_together(errors, "data.blend: corpora cannot be read")
    chosen = [
        None if part.max_clips is None or part.max_clips >= len(split) else part.max_clips
        for part, split in zip(run.corpora, splits, strict=True)
    ]
    return BlendedSplit(
        names=tuple(part.corpus for part in run.corpora),
        splits=tuple(splits),
        chosen=tuple(
            None if count is None else choose_clips(len(split), count)
            for split, count in zip(splits, chosen, strict=True)
        ),
    )


def count_clips(run: RunConfig) -> list[int]:
    """Return how many clips of each corpus are trained on; raise UserError where one is not there.

    Manifests alone are read.
    """
    counts = []
    for part in run.corpora:
        count = load_manifest(open_folder(part.data.place(part.data.train_split))).num_samples
        counts.append(count if part.max_clips is None else min(count, part.max_clips))
    return counts


def find_vector_dim(run: RunConfig) -> int | None:
    """Return the numbers of a frame in the feature sets that a run's model sees.

    None for a model of pictures, and where a set is not there: opening the split says why.
    """
    if not run.model.feature_sets:
        return None
    part, total = run.corpora[0], 0
    try:
        split = open_folder(part.data.place(part.data.train_split))
        for name in run.model.feature_sets:
            folder = split / feature_path(name)
            total += read_source(folder, read_manifest(folder).packing).dim
    except UserError:
        return None
    return total


def content_of(split: Split | BlendedSplit) -> dict[str, Any]:
    """Return what training sees of a split, as checksums; of a blend by the name of the corpus."""
    return split.contents if isinstance(split, BlendedSplit) else asdict(split.content)


def splits_of(split: Split | BlendedSplit) -> tuple[Split, ...]:
    """Return the splits of a blend, or the one split."""
    return split.splits if isinstance(split, BlendedSplit) else (split,)


def blend_of(run: RunConfig, sizes: Sequence[int]) -> Blend:
    """Return the draws of a run's blend, whose corpora have so many clips; raise UserError."""
    weights = [part.weight for part in run.corpora]
    draws = share_draws(sizes, weights, run.data.blend_temperature)
    return Blend(tuple(sizes), draws, run.train.seed)
