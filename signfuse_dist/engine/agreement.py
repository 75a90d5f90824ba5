"""What all processes agree on before a step: the counts of its losses, and whether to stop.

Counts and the stop flag travel between hosts, never through the GPU's stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from signfuse_dist.engine.objective import Batch, Objective
from signfuse_dist.errors import UserError


class Agreed(NamedTuple):
    """Sums over all processes and micro batches of one step."""

    counts: dict[str, float]
    frames: float
    clips: float
    broken: int
    stopping: bool


class Agreement:
    """Exchanges what each process brings to a step; every process calls it for every step."""

    def __init__(self, objective: Objective, num_processes: int) -> None:
        self._objective = objective
        self._names = tuple(objective.weights)
        self._hosts: Any = dist.new_group(backend="gloo") if num_processes > 1 else None

    def exchange(self, window: Sequence[Batch], stop_asked: bool) -> Agreed:
        """Return the sums over all processes, and whether any of them must stop."""
        local = torch.zeros(len(self._names) + 4, dtype=torch.float64)
        for batch in window:
            counts = self._objective.counts(batch)
            frames = float((batch.frame_lengths * batch.weight).sum())
            clips = float(batch.weight.sum())
            broken = float(len(batch.faults))
            local += torch.tensor([*(counts[n] for n in self._names), frames, clips, broken, 0.0])
        local[-1] = float(stop_asked)
        if self._hosts is not None:
            dist.all_reduce(local, group=self._hosts)
        *counts_of, frames, clips, broken, stops = local.tolist()
        named = dict(zip(self._names, counts_of, strict=True))
        return Agreed(named, frames, clips, int(broken), stops > 0)

    def gather(self, mine: list[str]) -> list[list[str]]:
        """Return what every process gives, by rank; for what happens rarely."""
        if self._hosts is None:
            return [mine]
        everyones: list[list[str]] = [[]] * dist.get_world_size(self._hosts)
        dist.all_gather_object(everyones, mine, group=self._hosts)
        return everyones


class BrokenClips:
    """Names the clips that could not be read, and refuses to go on when there are too many.

    Counted over all processes, from the beginning of the epoch, or from where the run was resumed.
    """

    def __init__(self, num_clips: int, max_share: float) -> None:
        self._num_clips, self._max_share, self._found = num_clips, max_share, 0

    def begin_epoch(self) -> None:
        """Count from zero."""
        self._found = 0

    def add(self, step: int, window: Sequence[Batch], found: int) -> None:
        """Name this process's, count ``found`` of all; raise UserError above the allowed share."""
        for fault in (fault for batch in window for fault in batch.faults):
            print(f"step {step}: clip left out: {fault}", flush=True)
        self._found += found
        share = self._found / self._num_clips
        if share > self._max_share:
            raise UserError(
                f"step {step}: {self._found} of {self._num_clips} clips of this epoch "
                f"could not be read, a share of {share:.2%} (train.max_broken_share is "
                f"{self._max_share:.2%}). They are named above; `signfuse verify` "
                "shows all that is wrong, `signfuse pack` repairs it, and the same command goes on"
            )
