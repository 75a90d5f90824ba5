"""The plan: which clips each process sees at each step, and how many steps there are.

Everything here is a pure function of the configuration, the clip lengths and the number of
processes. The order of the clips does not depend on the number of processes, so the state of the
data is ``(seed, epoch, step)``. Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.errors import UserError

PADDING = -1  # the place of a clip of weight zero: keeps every process in step at the epoch's tail


@dataclass(frozen=True)
class Plan:
    """Counts derived from the configuration; nothing here is typed by a user.

    ``num_pairs`` is B of Eq. 21: the clips of one micro batch over all processes. InfoNCE does not
    accumulate, so it is smaller than the global batch when there is accumulation.
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

    def describe(self) -> str:
        """Return the plan as lines for a terminal."""
        return "\n".join(
            (
                f"  {self.num_clips} clips, {self.world_size} processes x "
                f"{self.micro_batch_size} clips x {self.accumulation} accumulated = "
                f"{self.global_batch_size} a step",
                f"  {self.steps_per_epoch} steps an epoch, {self.total_steps} in all, "
                f"{self.warmup_steps} of warmup",
                f"  {self.num_pairs} pairs in each contrastive loss (B of Eq. 21)",
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
        num_pairs=together,
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


def epoch_order(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    """Return the clips of one epoch in order, each exactly once, on any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


def global_batch(order: NDArray[np.int64], step: int, size: int) -> NDArray[np.int64]:
    """Return the clips of one optimizer step, padded with :data:`PADDING` to ``size``."""
    batch = np.full(size, PADDING, dtype=np.int64)
    found = order[step * size : (step + 1) * size]
    batch[: len(found)] = found
    return batch


def share_out(
    clips: NDArray[np.int64], lengths: Sequence[int] | NDArray[np.int64], world_size: int
) -> NDArray[np.int64]:
    """Share the clips of a step among the processes so that their frames are balanced.

    Returns ``[world_size, len(clips) / world_size]``. Longest clips first, each to the process
    with the fewest frames that still has room; ties go to the lower rank.
    """
    frames = np.array([0 if c == PADDING else lengths[c] for c in clips])
    room = len(clips) // world_size
    load = [0] * world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for place in np.argsort(-frames, kind="stable"):
        rank = min((r for r in range(world_size) if len(shares[r]) < room), key=load.__getitem__)
        shares[rank].append(int(clips[place]))
        load[rank] += int(frames[place])
    return np.array(shares, dtype=np.int64)


def micro_batches(
    plan: Plan, seed: int, lengths: Sequence[int], rank: int, start_step: int
) -> Iterator[list[int]]:
    """Yield the clips of each micro batch of one process, from ``start_step`` to the end.

    A place of weight zero is :data:`PADDING`. Going to ``start_step`` costs one permutation. The
    clips that meet in one contrastive loss are chosen before they are shared out, so that they
    depend on the accumulation only.
    """
    order_epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(start_step, plan.total_steps):
        epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
        if epoch != order_epoch:
            order_epoch, order = epoch, epoch_order(seed, epoch, plan.num_clips)
        batch = global_batch(order, step_in_epoch, plan.global_batch_size)
        for together in batch.reshape(plan.accumulation, plan.num_pairs):
            yield share_out(together, lengths, plan.world_size)[rank].tolist()
