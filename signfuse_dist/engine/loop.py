"""The one training loop: knows steps, losses by name and a stop flag; no model and no data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint
from signfuse_dist.engine.agreement import Agreement, BrokenClips
from signfuse_dist.engine.finite import FiniteSteps
from signfuse_dist.engine.interval import Interval
from signfuse_dist.engine.log import MetricsLog
from signfuse_dist.engine.marks import WAITING, Marks
from signfuse_dist.engine.objective import Batch, Objective
from signfuse_dist.engine.signals import StopRequest, stop_file
from signfuse_dist.engine.step import Step
from signfuse_dist.plan import Plan, learning_rate


class Loop:
    """Trains one stage from a step to its end, or to a stop that every process agrees on."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective,
        plan: Plan, stage: StageConfig, train: TrainConfig, folder: Path, marks: Marks,
    ) -> None:  # fmt: skip
        """Take a prepared ``model`` and ``optimizer``; ``folder`` is the run folder."""
        self._marks = marks
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.objective, self.plan, self.stage, self.train = objective, plan, stage, train
        self.folder = folder
        self.names = tuple(objective.weights)
        self._agreement = Agreement(objective, accelerator.num_processes)
        self._broken = BrokenClips(plan.num_clips, train.max_broken_share)
        self._finite = FiniteSteps(model, self._agreement, train.non_finite)
        self._step = Step(
            accelerator, model, optimizer, objective, plan, stage, train, self._finite
        )
        self._since = Interval(self.names, accelerator.device)

    def run(self, batches: Iterator[Batch], start_step: int, set_mode: Callable[[], None]) -> bool:
        """Train; return whether the stage is finished (False: stopped on request, resumable).

        Args:
            batches: this process's micro batches from ``start_step`` on.
            start_step: optimizer steps already done.
            set_mode: puts the model's parts into training or evaluation mode.
        """
        main = self.accelerator.is_main_process
        log = MetricsLog(self.folder, self.plan.total_steps, start_step, main)
        set_mode()
        done = start_step
        with StopRequest(stop_file() if main else None) as stop:
            while done < self.plan.total_steps:
                if done % self.plan.steps_per_epoch == 0:
                    self._broken.begin_epoch()
                self._marks.at("loading clips", done + 1)
                started = time.perf_counter()
                window = [next(batches) for _ in range(self.plan.accumulation)]
                self._since.waited += time.perf_counter() - started
                self._marks.at(WAITING, done + 1)
                agreed = self._agreement.exchange(window, stop.asked)
                self._since.count(agreed.frames, agreed.clips, agreed.broken)
                self._broken.add(done + 1, window, agreed.broken)
                if agreed.stopping:
                    break
                self._marks.at("first step" if done == start_step else "computing", done + 1)
                self._step.take(done, window, agreed.counts, self._since)
                done += 1
                log.advance()
                self._report(done, log)
                if done % self.train.checkpoint_steps == 0 and done < self.plan.total_steps:
                    self._save(done)
            if done > start_step:
                self._save(done)
        log.close()
        return done == self.plan.total_steps

    def _report(self, done: int, log: MetricsLog) -> None:
        if done % self.train.log_steps and done != self.plan.total_steps:
            return
        sums = self._since.sums.clone()
        if self.accelerator.num_processes > 1:
            dist.all_reduce(sums)
        means = (sums / max(1, self._since.steps)).tolist()  # no step, no losses
        losses = self.objective.report(dict(zip(self.names, means, strict=True)))
        rates = self._since.rates()
        if not self._since.steps:
            losses, _ = {}, rates.pop("gradient_norm")
        log.write(
            {
                "step": done,
                "epoch": (done - 1) // self.plan.steps_per_epoch + 1,
                "stage": self.stage.name,
                **losses,
                "skipped": self._since.broken,
                "skipped_steps": self._finite.skipped,
                "learning_rate": learning_rate(done - 1, self.plan, self.stage.learning_rate),
                **rates,
            }
        )
        self._since = Interval(self.names, self.accelerator.device)
        self._finite.skipped = 0

    def _save(self, step: int) -> None:
        if not self._finite.taken:
            return  # weights are what they were at the start, and there may be no moments yet
        self._marks.at("saving", step)
        checkpoint.save(
            self.folder / "checkpoints", self.accelerator, self.model, self.optimizer, step,
            self.train.keep_checkpoints,
        )  # fmt: skip
