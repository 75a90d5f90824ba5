"""The plan: which clips each process sees at each step, and how many steps there are.

Everything here is a pure function of the configuration, the clip lengths and the number of
processes. The order of the clips does not depend on the number of processes, so the state of the
data is ``(seed, epoch, step)``. Importing this module imports no torch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.errors import UserError

PADDING = -1  # the place of a clip of weight zero: keeps every process in step at the epoch's tail


@dataclass(frozen=True)
class Plan:
    """Counts derived from the configuration; nothing here is typed by a user.

    ``num_pairs`` is B of Eq. 21: the global batch with gradient caching, and without it the clips
    of one micro batch over all processes, since InfoNCE does not accumulate.
    """

    num_clips: int
    world_size: int
    micro_batch_size: int
    global_batch_size: int
    accumulation: int
    num_pairs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @property
    def num_together(self) -> int:
        """The clips of one micro batch over all processes."""
        return self.micro_batch_size * self.world_size

    @property
    def caches_gradients(self) -> bool:
        """Whether more clips meet in Eq. 21 than are held at once."""
        return self.num_pairs > self.num_together

    def describe(self) -> str:
        """Return the plan as lines for a terminal."""
        how = ", by gradient caching" if self.caches_gradients else ""
        return "\n".join(
            (
                f"  {self.num_clips} clips, {self.world_size} processes x "
                f"{self.micro_batch_size} clips x {self.accumulation} accumulated = "
                f"{self.global_batch_size} a step",
                f"  {self.steps_per_epoch} steps an epoch, {self.total_steps} in all, "
                f"{self.warmup_steps} of warmup",
                f"  {self.num_pairs} pairs in each contrastive loss (B of Eq. 21){how}",
            )
        )


def make_plan(num_clips: int, stage: StageConfig, train: TrainConfig, world_size: int) -> Plan:
    """Derive the plan; raise :class:`UserError` where the batch does not divide."""
    if num_clips < 1:
        raise UserError("the training split has no clips; pack it first (signfuse pack)")
    together = train.micro_batch_size * world_size
    if train.global_batch_size % together:
        fits = divisors_that_fit(train.global_batch_size, world_size)
        advice = (
            f"train.micro_batch_size of {', '.join(map(str, fits))} divides"
            if fits
            else f"use a number of processes that divides {train.global_batch_size}"
        )
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} does not divide by "
            f"train.micro_batch_size {train.micro_batch_size} x {world_size} processes "
            f"= {together}: {advice}"
        )
    steps_per_epoch = math.ceil(num_clips / train.global_batch_size)
    return Plan(
        num_clips=num_clips,
        world_size=world_size,
        micro_batch_size=train.micro_batch_size,
        global_batch_size=train.global_batch_size,
        accumulation=train.global_batch_size // together,
        num_pairs=train.global_batch_size if train.gradient_caching else together,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * stage.epochs,
        warmup_steps=steps_per_epoch * stage.warmup_epochs,
    )


def divisors_that_fit(global_batch_size: int, world_size: int) -> list[int]:
    """Return the micro batch sizes that divide the global batch on ``world_size`` processes."""
    if world_size < 1 or global_batch_size % world_size:
        return []
    each = global_batch_size // world_size
    return [size for size in range(1, each + 1) if each % size == 0]


def learning_rate(step: int, plan: Plan, peak: float) -> float:
    """Return the rate of optimizer step ``step`` (from 0): linear warmup, then cosine to zero.

    Section 4.2: "cosine annealing with linear warmup", counted in optimizer steps. The first step
    has ``peak / warmup_steps``, so no step is spent at zero.
    """
    if step < plan.warmup_steps:
        return peak * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def data_position(plan: Plan, seed: int, step: int) -> dict[str, int]:
    """Return where the data stands after ``step`` steps; the next clips follow from it."""
    epoch, within = divmod(step, plan.steps_per_epoch)
    return {"seed": seed, "epoch": epoch, "step": within, "clips": plan.num_clips}


def epoch_order(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    """Return the clips of one epoch in order, each exactly once, on any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


def global_batch(order: NDArray[np.int64], step: int, size: int) -> NDArray[np.int64]:
    """Return the clips of one optimizer step, padded with :data:`PADDING` to ``size``."""
    batch = np.full(size, PADDING, dtype=np.int64)
    found = order[step * size : (step + 1) * size]
    batch[: len(found)] = found
    return batch


def share_out(frames: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """Share the clips of a step among the processes so that their frames are balanced.

    ``frames`` is the number of frames of each clip, ``[clips]``; every process gets as many clips
    as the others. Returns places in ``frames``, ``[world_size, clips / world_size]``. Longest
    first, each to the process with the fewest frames that still has room; then the fullest process
    swaps clips with others for as long as that makes it less full. Ties go to the lower rank.
    """
    room = len(frames) // world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    waiting = [(0, rank) for rank in range(world_size)]
    for place in np.argsort(-frames, kind="stable").tolist():
        load, rank = heapq.heappop(waiting)
        shares[rank].append(place)
        if len(shares[rank]) < room:
            heapq.heappush(waiting, (load + int(frames[place]), rank))
    return _levelled(frames, np.array(shares, dtype=np.int64))


def _levelled(frames: NDArray[np.int64], shares: NDArray[np.int64]) -> NDArray[np.int64]:
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


class MicroBatch(NamedTuple):
    """Clips that one process holds at once; a place of weight zero is :data:`PADDING`."""

    clips: list[int]
    epoch: int


FramesOf = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]
"""Returns how many frames each of some clips has in an epoch."""


class MicroBatches:
    """One process's micro batches from a step to the end of training, each found when asked for.

    Going to any place costs one permutation of the clips and, the first time in an epoch, nothing
    else: a million clips take tens of milliseconds. The clips that all processes hold at once are
    chosen before they are shared out, so that what meets in a batch norm, and without gradient
    caching in a contrastive loss, depends on the accumulation only.
    """

    def __init__(
        self, plan: Plan, seed: int, frames_of: FramesOf, rank: int, start_step: int
    ) -> None:
        self.plan, self.seed, self.frames_of = plan, seed, frames_of
        self.rank, self.start_step = rank, start_step
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return (self.plan.total_steps - self.start_step) * self.plan.accumulation

    def __getitem__(self, item: int) -> MicroBatch:
        if not 0 <= item < len(self):
            raise IndexError(item)
        plan = self.plan
        steps, part = divmod(item, plan.accumulation)
        epoch, step = divmod(self.start_step + steps, plan.steps_per_epoch)
        batch = global_batch(self._order_of(epoch), step, plan.global_batch_size)
        together = batch.reshape(plan.accumulation, plan.num_together)[part]
        real = together != PADDING
        frames = np.zeros(len(together), dtype=np.int64)
        frames[real] = self.frames_of(epoch, together[real])
        own = share_out(frames, plan.world_size)[self.rank]
        return MicroBatch(together[own].tolist(), epoch)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._order = epoch_order(self.seed, epoch, self.plan.num_clips)
            self._epoch = epoch
        return self._order

    def __getstate__(self) -> dict[str, object]:
        """Travel to loader workers without the order of an epoch, which they make themselves."""
        return {**vars(self), "_epoch": -1, "_order": np.empty(0, dtype=np.int64)}
