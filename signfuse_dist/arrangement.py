"""Which clips of a step, and of a bucket of steps, lie together: those about as long as each other.

Processes that compute a micro batch together wait for the one that has most to do, and a clip is
padded to the longest of its micro batch. Three things make both small, each a pure function of the
clips' lengths and, where it draws, of the seed:

- the clips of a micro batch are shared out among the processes by frames (:func:`share_out`);
- the clips of a step are sorted by length into its micro batches (``train.arrangement``);
- the clips of several steps are sorted by length into those steps (``train.bucket``).

The first changes no number beyond rounding. The second changes which clips meet in the statistics
of a batch norm and, without gradient caching, in Eq. 21: where there is neither it is the default.
The third changes which clips make a step, and is off by default. Imports no torch.

Paper: says nothing of which clips are computed together.
Here: as drawn wherever it could matter, and by length on request.
Because: processes that wait for the longest clip lose up to half of a step (docs/benchmarks.md).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import RunConfig
from signfuse_dist.stages import TRAINABLE, loss_weights

BATCH_NORMS = frozenset({"sync", "local"})  # norms whose statistics are those of a batch
# What the ResNet takes for a picture, beside all else of a frame: by arithmetic, of the paper's
# model.
PICTURE = 3
_DEALT = 3  # stream of numpy's generator: 1 is an epoch's augmentation, 2 a blend's order in a step

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Arrangement:
    """How clips are put together.

    Attributes:
        by_length: whether the clips of a step are sorted by length into its micro batches.
        bucket: how many steps have their clips sorted by length together; 0: none.
    """

    by_length: bool = False
    bucket: int = 0

    @classmethod
    def of(cls, run: RunConfig) -> Arrangement:
        """Return what ``train.arrangement`` and ``train.bucket`` mean in a run."""
        asked = run.train.arrangement
        by_length = asked == "length" or (asked == "auto" and not sees_micro_batch(run))
        return cls(by_length, run.train.bucket)

    def describe(self) -> str:
        """Return it in words; empty where clips stay as they are drawn."""
        said = ["a step's clips are sorted by length into its micro batches"] * self.by_length
        if self.bucket:
            said.append(f"those of {self.bucket} steps into these steps (train.bucket)")
        return ", ".join(said)

    def arrange(self, frames: Places, accumulation: int, world_size: int) -> Places:
        """Arrange the clips of a step, ``frames`` ``[clips]``, as places in it.

        Returns ``[accumulation, world_size, clips of a micro batch]``. Where they are sorted, the
        process that has had least so far gets the most of the next micro batch.
        """
        groups = np.arange(len(frames)).reshape(accumulation, -1)
        if not self.by_length:
            return np.stack([group[share_out(frames[group], world_size)] for group in groups])
        arranged, had = [], np.zeros(world_size, dtype=np.int64)
        for group in longest_first(frames).reshape(accumulation, -1):
            shares = group[share_out(frames[group], world_size)]
            loads = frames[shares].sum(axis=1)
            own = np.empty_like(shares)
            own[np.argsort(had, kind="stable")] = shares[longest_first(loads)]
            had += frames[own].sum(axis=1)
            arranged.append(own)
        return np.stack(arranged)

    def bounds(self, full_steps: int) -> Places:
        """Return where each bucket of an epoch begins, and the end: as even as can be."""
        number = -(-full_steps // self.bucket)
        return np.asarray(np.arange(number + 1) * full_steps // max(1, number))


AS_DRAWN = Arrangement()


def sees_micro_batch(run: RunConfig) -> bool:
    """Return whether it matters which clips of a step are in one micro batch.

    To the statistics of a norm in training mode, and to Eq. 21 without gradient caching.
    """
    return norms_see_clips(run) or (
        "contrastive" in loss_weights(run.stage.name, run.loss) and not run.train.gradient_caching
    )


def norms_see_clips(run: RunConfig) -> bool:
    """Return whether a norm takes statistics over the clips of a micro batch in this stage."""
    trains = {"visual", "skeletal"} & set(TRAINABLE[run.stage.name])
    return bool(trains and batch_norms(run))


def batch_norms(run: RunConfig) -> list[str]:
    """Return the keys of the model's norms whose statistics are those of a batch."""
    keys = ("norm", "visual_norm") if run.model.has_resnet else ("norm",)
    return [key for key in keys if getattr(run.model, key) in BATCH_NORMS]


def longest_first(frames: Places) -> Places:
    """Return the places of clips in the order of their frames; of equals, the first first."""
    return np.argsort(-frames, kind="stable")


def deal(frames: Places, corpora: Places, seed: Sequence[int]) -> Places:
    """Sort the clips of a bucket into its steps, so that those of a step are about as long.

    ``frames`` and ``corpora`` are ``[steps, clips]``, of the clips as drawn. Each step keeps as
    many clips of each corpus as it had. Which step gets the longest, and the order of the clips
    within a step, are drawn by ``seed``. Returns places in the flattened bucket, of the same shape.
    """
    steps, size = frames.shape
    drawn = np.random.default_rng([*seed, _DEALT])
    turns = drawn.permutation(steps)
    shuffled = np.argsort(drawn.random((steps, size)), axis=1, kind="stable")
    flat, of = frames.reshape(-1), corpora.reshape(-1)
    step_of = np.empty(flat.size, dtype=np.int64)
    for corpus in np.unique(of):
        own = np.flatnonzero(of == corpus)
        counts = (corpora == corpus).sum(axis=1)[turns]
        step_of[own[longest_first(flat[own])]] = np.repeat(turns, counts)
    dealt = np.argsort(step_of, kind="stable").reshape(steps, size)
    return np.take_along_axis(dealt, shuffled, axis=1)


def share_out(frames: Places, world_size: int) -> Places:
    """Share the clips of a micro batch among the processes so that their frames are balanced.

    ``frames`` is the number of frames of each clip, ``[clips]``; every process gets as many clips
    as the others. Returns places in ``frames``, ``[world_size, clips / world_size]``. Longest
    first, each to the process with the fewest frames that still has room; then the fullest process
    swaps clips with others for as long as that makes it less full. Ties go to the lower rank.
    """
    room = len(frames) // world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    waiting = [(0, rank) for rank in range(world_size)]
    for place in longest_first(frames).tolist():
        load, rank = heapq.heappop(waiting)
        shares[rank].append(place)
        if len(shares[rank]) < room:
            heapq.heappush(waiting, (load + int(frames[place]), rank))
    return _levelled(frames, np.array(shares, dtype=np.int64))


def _levelled(frames: Places, shares: Places) -> Places:
    """Swap clips of the fullest process with others while the fuller of the two gets less full."""
    loads = frames[shares].sum(axis=1)
    for _ in range(shares.size):
        full = int(loads.argmax())
        less = frames[shares[full]][:, None, None] - frames[shares][None]
        after = np.maximum(loads[full] - less, loads[None, :, None] + less)
        after[:, full] = loads[full]
        mine, other, theirs = np.unravel_index(int(after.argmin()), after.shape)
        if after[mine, other, theirs] >= loads[full]:
            break
        moved = less[mine, other, theirs]
        pair = shares[full, mine], shares[other, theirs]
        shares[other, theirs], shares[full, mine] = pair
        loads[full] -= moved
        loads[other] += moved
    return shares
