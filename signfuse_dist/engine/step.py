"""One optimizer step over the micro batches of a window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from signfuse_dist.engine.timeline import OPTIMIZER, OTHER
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
        scale = self._accelerator.num_processes * self._plan.accumulation
        weights = self._objective.weights
        losses: list[dict[str, Tensor]] = []
        norm, taken = None, False
        self._finite.begin()
        for part, compared in enumerate(self._compare(step, window)):
            batch = window[part].to(self._accelerator.device)
            self._seed(step, part)
            with self._accelerator.accumulate(self._model):
                sums = self._objective(self._model, batch, compared)
                terms = [weights[n] * sums[n] / max(counts[n], 1) for n in sums]
                self._accelerator.backward(marked(torch.stack(terms).sum()) * scale)
                interval.enter(OPTIMIZER)
                if self._accelerator.sync_gradients:
                    norm = self._clip()
                    taken = self._finite.allows(norm)
                    if taken:
                        self._optimizer.step()
                self._optimizer.zero_grad()
            interval.enter(OTHER)
            losses.append({name: loss.detach() for name, loss in sums.items()})
        if not taken:
            self._finite.refuse(step + 1, window, [list(of.values()) for of in losses])
            return
        self._finite.took()
        interval.gradient_norm = norm
        for sums in losses:
            interval.add(sums, counts)
        interval.steps += 1

    def _compare(self, step: int, window: Sequence[Batch]) -> Sequence[Any]:
        """Return what each micro batch has of a loss over all of them, None where there is none.

        Gradient caching (Gao et al., 2021): memory of one micro batch, for another run of what
        makes the summaries. With one micro batch a step there is nothing to cache.
        """
        if not (self._plan.caches_gradients and self._objective.compares):
            return [None] * len(window)
        summaries = []
        with torch.no_grad(), _buffers_kept(self._model):
            for part, batch in enumerate(window):
                self._seed(step, part)
                on_device = batch.to(self._accelerator.device)
                summaries.append(self._objective.summarise(self._model, on_device))
        return self._objective.compare(window, summaries)

    def _seed(self, step: int, part: int) -> None:
        """Key the randomness by step, process and micro batch: resumed and repeated runs agree."""
        key = [self._train.seed, step, self._accelerator.process_index, part]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _clip(self) -> Any:
        """Clip (plain DDP) or ask what was clipped (DeepSpeed clips by its own dictionary)."""
        model: Any = self._model
        if hasattr(model, "get_global_grad_norm"):
            return model.get_global_grad_norm()
        # 0 is no clipping, as in DeepSpeed.
        limit = self._train.gradient_clipping or math.inf
        return self._accelerator.clip_grad_norm_(self._model.parameters(), limit)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back at the end: norm statistics count each micro batch once.

    At the end, so that each micro batch finds the statistics that it will find again.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)
