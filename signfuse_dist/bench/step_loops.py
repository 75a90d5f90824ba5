"""The two loops that `signfuse bench step` compares: a bare one of PyTorch, and the engine's."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from signfuse_dist.batch import SignBatch
from signfuse_dist.bench.step_case import Case
from signfuse_dist.engine import process
from signfuse_dist.engine.agreement import Agreement
from signfuse_dist.engine.finite import FiniteSteps
from signfuse_dist.engine.interval import Interval
from signfuse_dist.engine.optim import make_optimizer
from signfuse_dist.engine.step import Step
from signfuse_dist.engine.timeline import OPTIMIZER, Timeline
from signfuse_dist.metering import meter_of
from signfuse_dist.model.flops import components
from signfuse_dist.model.signfuse import SignFuse


@dataclass(frozen=True)
class Taken:
    """One step: its seconds of wall and of processor time, and those of each of its parts."""

    seconds: float
    processor: float
    parts: dict[str, float]
    peak_bytes: float


class BareLoop:
    """Forward, backward, clip, AdamW: what anybody would write, on the same modules."""

    def __init__(self, case: Case, model: SignFuse, device: torch.device) -> None:
        self._case, self._model, self._device = case, model, device
        train = case.run.train
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(model, case.run.stage.learning_rate, train.weight_decay)
        self._counts = case.objective.counts(case.batch)
        self._timeline: Timeline | None = None

    def divide(self) -> None:
        """From now on note the time of each component as well."""
        self._timeline = Timeline(self._device, components(self._model))

    def take(self, batch: SignBatch) -> Taken:
        """Take one step."""
        return timed(lambda: self._step(batch), self._timeline, self._device)

    def _step(self, batch: SignBatch) -> None:
        case, counts = self._case, self._counts
        bf16 = case.run.train.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            sums = case.objective(self._model, batch.to(self._device))
        weights = case.objective.weights
        total = torch.stack([weights[n] * sums[n] / counts[n] for n in sums]).sum()
        torch.autograd.backward(total)
        if self._timeline is not None:
            self._timeline.mark(OPTIMIZER)
        torch.nn.utils.clip_grad_norm_(self._trained, case.run.train.gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()


class EngineLoop:
    """A step of the engine as training takes it, its share of a log line included."""

    def __init__(self, case: Case, model: SignFuse, template: Path | None) -> None:
        _launch_alone(template)
        self._case, run = case, case.run
        self.accelerator, _ = process.start(case.plan, run.train)
        optimizer = make_optimizer(model, run.stage.learning_rate, run.train.weight_decay)
        self.meter = meter_of(model, case.objective, run, self.accelerator.device)
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        self._agreement = Agreement(case.objective, 1)
        self._step = Step(
            self.accelerator, prepared, optimizer, case.objective, case.plan, run.stage, run.train,
            FiniteSteps(prepared, self._agreement, run.train.non_finite),
        )  # fmt: skip
        self._timeline = Timeline(self.accelerator.device, self.meter.components)
        self._done = 0

    def take(self, batch: SignBatch) -> Taken:
        """Take one step; a log line's time is counted for as much as one of its steps."""
        names, device = tuple(self._case.objective.weights), self.accelerator.device
        interval = Interval(names, device, self.meter, self._timeline)
        taken = timed(lambda: self._take(batch, interval), self._timeline, device)
        line = timed(lambda: self._log(interval), None, device)
        share = 1 / self._case.run.train.log_steps
        return Taken(
            taken.seconds + share * line.seconds,
            taken.processor + share * line.processor,
            taken.parts,
            max(taken.peak_bytes, line.peak_bytes),
        )

    def _log(self, interval: Interval) -> None:
        means, _ = interval.close(1)
        self._case.objective.report(means)

    def _take(self, batch: SignBatch, interval: Interval) -> None:
        agreed = self._agreement.exchange([batch], False)
        interval.count(agreed, [batch])
        self._step.take(self._done, [batch], agreed.counts, interval)
        self._done += 1


def timed(step: Callable[[], None], timeline: Timeline | None, device: torch.device) -> Taken:
    """Run a step from an idle device to an idle device."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    if timeline is not None:
        timeline.restart()
    began, cpu = time.perf_counter(), time.process_time()
    step()
    if gpu:
        torch.cuda.synchronize(device)
    seconds, processor = time.perf_counter() - began, time.process_time() - cpu
    parts = {} if timeline is None else timeline.take()
    return Taken(seconds, processor, parts, torch.cuda.max_memory_allocated(device) if gpu else 0.0)


def _launch_alone(template: Path | None) -> None:
    """Set what a launcher sets for the only process of a run."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(
        {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_DEEPSPEED": "false" if template is None else "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none" if template is None else str(template),
        }
    )  # fmt: skip
