"""What the processes know together of a step: its counts, its broken clips, and if it is finite.

A step whose loss or gradient is not finite on any process is taken by none of them. What every
process knows at the same step, without a message of its own, is the norm of the gradient: it is
that of all processes. :func:`marked` lets a loss that is not finite show in it. DeepSpeed computes
the norm before it touches weights or moments, and takes no step when it is not finite; under plain
DDP the step asks :meth:`FiniteSteps.allows`. Batch statistics of norms, which change in the forward
pass, are put back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signfuse_dist.engine.objective import Objective, TrainingBatch
from signfuse_dist.errors import UserError
from signfuse_dist.progress import print_line


class Agreed(NamedTuple):
    """Sums over all processes and micro batches of one step."""

    counts: dict[str, float]
    frames: float
    needed: float
    """Work without padding, of all processes."""
    slowest: float
    """Work of the process with the most, micro batch by micro batch: the only maxima."""
    clips: float
    broken: int
    stopping: bool


class Agreement:
    """Exchanges what each process brings to a step; every process calls it for every step."""

    def __init__(self, objective: Objective, num_processes: int) -> None:
        self._objective = objective
        self._names = (*objective.weights, *objective.observed)
        self._num_processes = num_processes
        self._hosts: Any = dist.new_group(backend="gloo") if num_processes > 1 else None

    def exchange(self, window: Sequence[TrainingBatch], stop_asked: bool) -> Agreed:
        """Return the sums over all processes, and whether any of them must stop."""
        # Each process puts its work into places of its own, so that a sum brings them all.
        processes = self._num_processes
        own = dist.get_rank() if processes > 1 else 0
        each = [[0.0] * processes for _ in window]
        local = [0.0] * (len(self._names) + 5)
        for part, batch in enumerate(window):
            counts = self._objective.counts(batch)
            needed, each[part][own] = batch.work
            frames = float((batch.frame_lengths * batch.weight).sum())
            rest = frames, needed, float(batch.weight.sum()), float(len(batch.faults)), 0.0
            brought = (*(counts[n] for n in self._names), *rest)
            local = [sum(pair) for pair in zip(local, brought, strict=True)]
        local[-1] = float(stop_asked)
        if self._hosts is not None:
            works = [work for part in each for work in part]
            together = torch.tensor([*works, *local], dtype=torch.float64)
            dist.all_reduce(together, group=self._hosts)
            everyones = together.tolist()
            local = everyones[len(works) :]
            each = [everyones[i : i + processes] for i in range(0, len(works), processes)]
        slowest = sum(map(max, each))
        *counts_of, frames, needed, clips, broken, stops = local
        named = dict(zip(self._names, counts_of, strict=True))
        return Agreed(named, frames, needed, slowest, clips, int(broken), stops > 0)

    def gather(self, mine: list[str]) -> list[list[str]]:
        """Return what every process gives, by rank; for what happens rarely."""
        if self._hosts is None:
            return [mine]
        everyones: list[list[str]] = [[]] * dist.get_world_size(self._hosts)
        dist.all_gather_object(everyones, mine, group=self._hosts)
        return everyones


class BrokenClips:
    """Names the clips that could not be read, and refuses to go on when there are too many.

    Counted over all processes, from the beginning of the epoch. ``count`` is how many there have
    been; a checkpoint carries it.
    """

    def __init__(self, num_clips: int, max_share: float) -> None:
        self._num_clips, self._max_share, self.count = num_clips, max_share, 0

    def begin_epoch(self) -> None:
        """Count from zero."""
        self.count = 0

    def add(self, step: int, window: Sequence[TrainingBatch], broken: int) -> None:
        """Name this process's, count ``broken`` of all; raise UserError above the allowed share."""
        for fault in (fault for batch in window for fault in batch.faults):
            print_line(f"step {step}: clip left out: {fault}")
        self.count += broken
        share = self.count / self._num_clips
        if share > self._max_share:
            raise UserError(
                f"step {step}: {self.count} of {self._num_clips} clips of this epoch "
                f"could not be read, a share of {share:.2%} (train.max_broken_share is "
                f"{self._max_share:.2%}). They are named above; `signfuse verify` "
                "shows all that is wrong, `signfuse pack` repairs it, and the same command goes on"
            )


# A clip that cannot be computed comes once an epoch. As many steps one after the other are not the
# clips' fault: the weights are broken, and no later step would be taken either.
MAX_IN_A_ROW = 10
_NAMED = 20  # clips in an error message; all of them are printed before


def marked(loss: Tensor) -> Tensor:
    """Return a 0-dim ``loss`` whose gradient is not-a-number when its value is not finite.

    The gradient of a loss that is not finite may be finite. Nothing waits for the device.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


class FiniteSteps:
    """Looks at every step, and names the clips of one that was not taken.

    ``skipped`` counts the steps that were not taken since it was last set to 0, ``taken`` those
    that were.
    """

    def __init__(
        self, model: nn.Module, agreement: Agreement, choice: Literal["stop", "skip"]
    ) -> None:
        """``choice`` is ``train.non_finite``."""
        self._agreement, self._choice = agreement, choice
        self._statistics = list(_statistics(model))
        self._before = [tensor.clone() for tensor in self._statistics]
        self.skipped, self.taken, self._in_a_row = 0, 0, 0

    def begin(self) -> None:
        """Remember the norms' statistics, before the first forward pass of a step."""
        _copy(self._statistics, self._before)

    def allows(self, gradient_norm: float | Tensor | None) -> bool:
        """Return whether the step may be taken: the same on every process.

        This waits for the device where the norm is there. Under ZeRO-2 it has been waited for.
        """
        if gradient_norm is None:
            raise RuntimeError(
                "the norm of the gradient is not known: zero_optimization.compute_grad_norm of the "
                "DeepSpeed template must not be false"
            )
        return math.isfinite(float(gradient_norm))

    def note_taken(self) -> None:
        """Note that a step was taken."""
        self.taken += 1
        self._in_a_row = 0

    def refuse(
        self, step: int, window: Sequence[TrainingBatch], losses: Sequence[Sequence[Tensor]]
    ) -> None:
        """Name the clips of step ``step`` (from 1), which was not taken; every process calls this.

        ``losses`` are this process's 0-dim losses of each micro batch of ``window``. Raises
        UserError on every process when ``train.non_finite`` is `stop`, or after
        :data:`MAX_IN_A_ROW` such steps one after the other.
        """
        _copy(self._before, self._statistics)
        self.skipped += 1
        self._in_a_row += 1
        clips, what = self._suspects(window, losses)
        print_line(f"step {step}: {what}; clips of this process: {_listed(clips)}")
        everyones = [clip for part in self._agreement.gather(clips) for clip in part]
        refusal = (
            f"step {step}: {what}, and no process took the step; clips: "
            f"{_listed(everyones[:_NAMED])}{' ...' if len(everyones) > _NAMED else ''}"
        )
        if self._choice == "stop":
            raise UserError(
                f"{refusal}. The last checkpoint is kept. Look at the clips (signfuse show, "
                "signfuse verify), lower stage.learning_rate, or leave such steps out: "
                "train.non_finite=skip"
            )
        if self._in_a_row == MAX_IN_A_ROW:
            raise UserError(
                f"{refusal}. It is the {MAX_IN_A_ROW}th such step without one between that was "
                "finite: not the clips but the weights are broken. The last checkpoint is kept; "
                "lower stage.learning_rate, or go back to an earlier checkpoint"
            )

    def _suspects(
        self, window: Sequence[TrainingBatch], losses: Sequence[Sequence[Tensor]]
    ) -> tuple[list[str], str]:
        """Return this process's clips to look at, and what is not finite on any process.

        The clips of micro batches whose loss is not finite. Where every loss of every process is
        finite, the gradient alone is not, and each micro batch may be why.
        """
        finite = [bool(torch.stack(list(of)).isfinite().all()) for of in losses]
        odd = [name for b, ok in zip(window, finite, strict=True) if not ok for name in b.ids]
        if any(self._agreement.gather(odd)):
            return [name for name in odd if name], "the loss is not finite"
        names = [name for batch in window for name in batch.ids if name]
        return names, "the gradient is not finite (every loss is)"


def _statistics(model: nn.Module) -> list[Tensor]:
    """Return what a forward pass in training may change: floating buffers that are saved."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set
    ]


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
