"""One optimizer step over the micro batches of a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine.finite import FiniteSteps, marked
from signfuse_dist.engine.interval import Interval
from signfuse_dist.engine.objective import Batch, Objective
from signfuse_dist.engine.optim import set_learning_rate
from signfuse_dist.plan import Plan, learning_rate


class Step:
    """Takes optimizer steps. Sums over global counts: no process's mean enters (Eq. 21-23)."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective,
        plan: Plan, stage: StageConfig, train: TrainConfig, finite: FiniteSteps,
    ) -> None:  # fmt: skip
        self._finite = finite
        self._accelerator, self._model, self._optimizer = accelerator, model, optimizer
        self._objective, self._plan, self._stage, self._train = objective, plan, stage, train

    def take(
        self, step: int, window: Sequence[Batch], counts: dict[str, float], interval: Interval
    ) -> None:
        """Take step ``step`` (from 0) and note its losses and gradient norm in ``interval``.

        A step that is not finite is not taken, and noted by ``finite`` alone.

        DeepSpeed and DDP average gradients over processes, and Accelerate over accumulation; the
        factor takes both back.
        """
        peak = self._stage.learning_rate
        set_learning_rate(self._optimizer, learning_rate(step, self._plan, peak))
        torch.manual_seed(_seed(self._train.seed, step, self._accelerator.process_index))
        scale = self._accelerator.num_processes * self._plan.accumulation
        weights = self._objective.weights
        losses: list[dict[str, Tensor]] = []
        norm, taken = None, False
        self._finite.begin()
        for batch in window:
            with self._accelerator.accumulate(self._model):
                sums = self._objective(self._model, batch.to(self._accelerator.device))
                terms = [weights[n] * sums[n] / max(counts[n], 1) for n in sums]
                self._accelerator.backward(marked(torch.stack(terms).sum()) * scale)
                if self._accelerator.sync_gradients:
                    norm = self._clip()
                    taken = self._finite.allows(norm)
                    if taken:
                        self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append({name: loss.detach() for name, loss in sums.items()})
        if not taken:
            self._finite.refuse(step + 1, window, [list(of.values()) for of in losses])
            return
        self._finite.took()
        interval.gradient_norm = norm
        for sums in losses:
            interval.add(sums, counts)
        interval.steps += 1

    def _clip(self) -> Any:
        """Clip (plain DDP) or ask what was clipped (DeepSpeed clips by its own dictionary)."""
        model: Any = self._model
        if hasattr(model, "get_global_grad_norm"):
            return model.get_global_grad_norm()
        return self._accelerator.clip_grad_norm_(
            self._model.parameters(), self._train.gradient_clipping
        )


def _seed(seed: int, step: int, rank: int) -> int:
    """Randomness is keyed by step and process, so a resumed run draws what it would have drawn."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
