"""The one training loop: knows steps, losses by name and a stop flag; no model and no data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint
from signfuse_dist.engine.log import MetricsLog
from signfuse_dist.engine.optim import set_learning_rate
from signfuse_dist.engine.signals import StopRequest
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan, learning_rate


class Batch(Protocol):
    """What the loop asks of a batch."""

    @property
    def frame_lengths(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def faults(self) -> tuple[str, ...]: ...
    def to(self, device: torch.device) -> Any: ...


class Objective(Protocol):
    """Named losses as sums, and what each is averaged over."""

    weights: dict[str, float]

    def counts(self, batch: Any) -> dict[str, float]: ...
    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]: ...
    def report(self, means: dict[str, float]) -> dict[str, float]: ...


class Loop:
    """Trains one stage from a step to its end, or to a stop that every process agrees on."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective,
        plan: Plan, stage: StageConfig, train: TrainConfig, folder: Path,
    ) -> None:  # fmt: skip
        """Take a prepared ``model`` and ``optimizer``; ``folder`` is the run folder."""
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.objective, self.plan, self.stage, self.train = objective, plan, stage, train
        self.folder = folder
        self.names = tuple(objective.weights)
        # Counts and the stop flag travel between hosts, never through the GPU's stream.
        self._hosts: Any = None
        if accelerator.num_processes > 1:
            self._hosts = dist.new_group(backend="gloo")
        self._since = _Interval(self.names, accelerator.device)
        self._broken = 0  # clips of this epoch that could not be read, over all processes

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
        with StopRequest() as stop:
            while done < self.plan.total_steps:
                if done % self.plan.steps_per_epoch == 0:
                    self._broken = 0
                started = time.perf_counter()
                window = [next(batches) for _ in range(self.plan.accumulation)]
                self._since.waited += time.perf_counter() - started
                counts, stopping = self._agree(window, stop.asked)
                self._name_broken(done, window)
                if stopping:
                    break
                self._step(done, window, counts)
                done += 1
                log.advance()
                self._report(done, log)
                if done % self.train.checkpoint_steps == 0 and done < self.plan.total_steps:
                    self._save(done)
            if done > start_step:
                self._save(done)
        log.close()
        return done == self.plan.total_steps

    def _agree(self, window: Sequence[Batch], asked: bool) -> tuple[dict[str, float], bool]:
        """Return the counts over all processes and micro batches, and whether any must stop."""
        local = torch.zeros(len(self.names) + 4, dtype=torch.float64)
        for batch in window:
            counts = self.objective.counts(batch)
            frames = float((batch.frame_lengths * batch.weight).sum())
            clips = float(batch.weight.sum())
            broken = float(len(batch.faults))
            local += torch.tensor([*(counts[n] for n in self.names), frames, clips, broken, 0.0])
        local[-1] = float(asked)
        if self._hosts is not None:
            dist.all_reduce(local, group=self._hosts)
        *counts_of, frames, clips, broken, stops = local.tolist()
        self._since.frames += frames
        self._since.clips += clips
        self._since.broken += int(broken)
        self._broken += int(broken)
        return dict(zip(self.names, counts_of, strict=True)), stops > 0

    def _name_broken(self, done: int, window: Sequence[Batch]) -> None:
        """Name the clips that could not be read; stop all processes when there are too many.

        Counted from the beginning of the epoch, or from where the run was resumed in it.
        """
        for fault in (fault for batch in window for fault in batch.faults):
            print(f"step {done + 1}: clip left out: {fault}", flush=True)
        share = self._broken / self.plan.num_clips
        if share > self.train.max_broken_share:
            raise UserError(
                f"step {done + 1}: {self._broken} of {self.plan.num_clips} clips of this epoch "
                f"could not be read, a share of {share:.2%} (train.max_broken_share is "
                f"{self.train.max_broken_share:.2%}). They are named above; `signfuse verify` "
                "shows all that is wrong, `signfuse pack` repairs it, and the same command goes on"
            )

    def _step(self, step: int, window: Sequence[Batch], counts: dict[str, float]) -> None:
        """One optimizer step. Sums over global counts: no process's mean enters (Eq. 21-23).

        DeepSpeed and DDP average gradients over processes, and Accelerate over accumulation;
        the factor takes both back.
        """
        set_learning_rate(self.optimizer, learning_rate(step, self.plan, self.stage.learning_rate))
        torch.manual_seed(_seed(self.train.seed, step, self.accelerator.process_index))
        scale = self.accelerator.num_processes * self.plan.accumulation
        for batch in window:
            with self.accelerator.accumulate(self.model):
                sums = self.objective(self.model, batch.to(self.accelerator.device))
                terms = [self.objective.weights[n] * sums[n] / max(counts[n], 1) for n in sums]
                self.accelerator.backward(torch.stack(terms).sum() * scale)
                if self.accelerator.sync_gradients:
                    self._since.gradient_norm = self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._since.add(sums, counts)
        self._since.steps += 1

    def _clip(self) -> Any:
        """Clip (plain DDP) or ask what was clipped (DeepSpeed clips by its own dictionary)."""
        model: Any = self.model
        if hasattr(model, "get_global_grad_norm"):
            return model.get_global_grad_norm()
        return self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.train.gradient_clipping
        )

    def _report(self, done: int, log: MetricsLog) -> None:
        if done % self.train.log_steps and done != self.plan.total_steps:
            return
        sums = self._since.sums.clone()
        if self.accelerator.num_processes > 1:
            dist.all_reduce(sums)
        means = dict(zip(self.names, (sums / self._since.steps).tolist(), strict=True))
        losses = self.objective.report(means)
        self._refuse_not_finite(done, losses)
        log.write(
            {
                "step": done,
                "epoch": (done - 1) // self.plan.steps_per_epoch + 1,
                "stage": self.stage.name,
                **losses,
                "skipped": self._since.broken,
                "learning_rate": learning_rate(done - 1, self.plan, self.stage.learning_rate),
                **self._since.rates(),
            }
        )
        self._since = _Interval(self.names, self.accelerator.device)

    def _refuse_not_finite(self, step: int, losses: Any) -> None:
        """Raise RuntimeError, on every process: the norm of the gradient is that of all of them."""
        values = losses.values() if isinstance(losses, dict) else losses
        norm = float(self._since.gradient_norm)
        if not all(map(math.isfinite, (*values, norm))):
            raise RuntimeError(
                f"losses {losses} or the gradient's norm {norm} are not finite at step {step}. "
                f"The last checkpoint is kept; lower stage.learning_rate or look for a broken "
                f"clip (signfuse verify)"
            )

    def _save(self, step: int) -> None:
        self._refuse_not_finite(step, self._since.sums.tolist())
        checkpoint.save(
            self.folder / "checkpoints", self.accelerator, self.model, self.optimizer, step,
            self.train.keep_checkpoints,
        )  # fmt: skip


class _Interval:
    """What has happened since the last log line; losses stay on the device until it is written."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.started = time.perf_counter()
        self.steps, self.waited, self.frames, self.clips, self.broken = 0, 0.0, 0.0, 0.0, 0
        self.gradient_norm: Any = 0.0

    def add(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        means = [sums[n].detach().double() / max(counts[n], 1) for n in self.names]
        self.sums += torch.stack(means)

    def rates(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        return {
            "gradient_norm": float(self.gradient_norm),
            "clips_per_second": self.clips / elapsed,
            "frames_per_second": self.frames / elapsed,
            "data_wait": self.waited / elapsed,
        }


def _seed(seed: int, step: int, rank: int) -> int:
    """Randomness is keyed by step and process, so a resumed run draws what it would have drawn."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
