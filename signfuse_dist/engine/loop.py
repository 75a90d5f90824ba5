"""The one training loop and its step: losses by name and a stop flag, no model and no data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint
from signfuse_dist.engine.average import WeightAverage
from signfuse_dist.engine.checkpoint import CheckpointWriter
from signfuse_dist.engine.guards import Agreement, BrokenClips, FiniteSteps, marked
from signfuse_dist.engine.metrics import Interval, MetricsLog
from signfuse_dist.engine.objective import NOTHING, Meter, Objective, TrainingBatch
from signfuse_dist.engine.selection import Selection
from signfuse_dist.engine.stopping import StopRequest, stop_file
from signfuse_dist.engine.timing import OPTIMIZER, OTHER, WAITING, Marks, Phase, Startup, Timeline
from signfuse_dist.plan import Plan, data_position, learning_rate
from signfuse_dist.run_folder import RunFolder

Development = Callable[[], dict[str, float]]
"""Scores the development split on every process: the same figures on each, the first of them the
score by which checkpoints are compared; none when it could not be scored."""


@dataclass(kw_only=True)
class Loop:
    """Trains one stage from a step to its end, or to a stop that every process agrees on.

    Attributes:
        step: takes the steps; it has model, optimizer, objective and plan.
        folder: the run folder.
        marks: where this process says what it does.
        identity: what checkpoints say of the run, to be compared when it goes on.
        development: called every ``train.dev_epochs`` epochs; it must leave the model as it was and
            draw nothing, so that a run is the same with it and without.
        rising: names of figures of the development split of which higher is better.
        selection: what is known of the scores so far.
        meter: what of the model its figures are divided into.
        startup: where the time before the first step went so far.
    """

    step: Step
    folder: Path
    marks: Marks
    identity: Mapping[str, Any]
    development: Development | None = None
    rising: Collection[str] = ()
    selection: Selection = field(default_factory=Selection)
    meter: Meter = NOTHING
    startup: Startup = field(default_factory=Startup)

    def __post_init__(self) -> None:
        self._plan, self._train = self.step.plan, self.step.train
        self._broken = BrokenClips(self._plan.num_clips, self._train.max_broken_share)
        self._timeline = Timeline(self.step.accelerator.device, self.meter.components)
        self._since = self._new_interval()
        self.done = 0
        """Optimizer steps of the stage that were done when :meth:`run` ended."""

    def run(
        self,
        batches: Iterator[TrainingBatch],
        start_step: int,
        set_mode: Callable[[], None],
        broken_clips: int = 0,
    ) -> bool:
        """Train; return whether the stage is finished (False: stopped on request, resumable).

        Args:
            batches: this process's micro batches from ``start_step`` on.
            start_step: optimizer steps already done.
            set_mode: puts the model's parts into training or evaluation mode.
            broken_clips: clips of the epoch of ``start_step`` that could not be read before.

        Raises MachineError on every process when the last checkpoint cannot be written. After
        ``train.failed_checkpoints`` in a row that could not be, training stops; of a step after
        the last of them one more is tried.
        """
        main = self.step.accelerator.is_main_process
        log = MetricsLog(self.folder, self._plan.total_steps, start_step, main)
        set_mode()
        self._since = self._new_interval()
        self._broken.count = broken_clips
        checkpoint_writer = CheckpointWriter(
            RunFolder(self.folder).checkpoints,
            self._train.keep_checkpoints,
            self.step.accelerator,
            log.print_main,
            start_step=start_step,
            max_failed=self._train.failed_checkpoints,
        )
        with StopRequest(stop_file() if main else None) as stop, checkpoint_writer as writer:

            def stop_asked() -> bool:
                return stop.asked or writer.has_given_up

            done = saved = start_step
            while done < self._plan.total_steps and not self.selection.is_over:
                computing: Phase = "first step" if done == start_step else "computing"
                if not self._take_step(done, batches, stop_asked, computing):
                    break
                done += 1
                self._end_startup(log)
                log.advance()
                scores = self._score(done)
                self._report(done, log, scores)
                if scores:
                    self.selection.note(self._compared(scores))
                if scores or done % self._train.checkpoint_steps == 0:
                    self._save(done, writer, scores)
                    saved = done
            if done > saved:
                self._save(done, writer, {})
            self.marks.at("saving", done)
            writer.finish()
        early = done < self._plan.total_steps and self.selection.is_over
        if early:
            log.print_main(
                f"the stage ends after step {done} of {self._plan.total_steps}: "
                f"{self.selection.waited} development scores in a row were not better than the "
                "best (train.patience)"
            )
        log.close()
        self.done = done
        return early or done == self._plan.total_steps

    def _take_step(
        self,
        done: int,
        batches: Iterator[TrainingBatch],
        stop_asked: Callable[[], bool],
        computing: Phase,
    ) -> bool:
        """Take the step after ``done``; return False where a process was asked to stop."""
        if done % self._plan.steps_per_epoch == 0:
            self._broken.begin_epoch()
        self.marks.at("loading clips", done + 1)
        started = time.perf_counter()
        window = [next(batches) for _ in range(self._plan.accumulation)]
        self._since.waited += time.perf_counter() - started
        self.startup.lap("first batch")
        self.marks.at(WAITING, done + 1)
        agreed = self.step.agreement.exchange(window, stop_asked())
        if agreed.stopping:  # the window comes again, and its clips count then
            return False
        self._since.count(agreed, window)
        self._broken.add(done + 1, window, agreed.broken)
        self.marks.at(computing, done + 1)
        self.step.take(done, window, agreed.counts, self._since)
        return True

    def _score(self, done: int) -> dict[str, float]:
        """Return the development scores, empty where none are due; no speed counts their time."""
        epoch, within = divmod(done, self._plan.steps_per_epoch)
        last = done == self._plan.total_steps
        if self.development is None or within or (epoch % self._train.dev_epochs and not last):
            return {}
        self.marks.at("scoring", done)
        average = self.step.average
        with self._since.paused(), nullcontext() if average is None else average.in_place():
            return self.development()

    def _compared(self, scores: Mapping[str, float]) -> float:
        """Return the score by which checkpoints are compared, so that lower is better."""
        name, value = next(iter(scores.items()))
        return -value if name in self.rising else value

    def _report(self, done: int, log: MetricsLog, scores: dict[str, float]) -> None:
        if done % self._train.log_steps and done != self._plan.total_steps and not scores:
            return
        means, figures = self._since.close(self.step.accelerator.num_processes)
        stage = self.step.stage
        rate = learning_rate(done - 1, self._plan, stage.learning_rate)
        values = {
            "epoch": (done - 1) // self._plan.steps_per_epoch + 1,
            **(self.step.objective.report(means) if means else {}),
            **scores,
            "skipped": self._since.broken,
            "skipped_steps": self.step.finite.skipped,
            "learning_rate": rate,
            **{f"learning_rate/{part}": rate * by for part, by in (stage.rates or {}).items()},
            **figures,
        }
        log.write({"step": done, "stage": stage.name, **values})
        self.step.accelerator.log(values, step=done)
        self._since = self._new_interval()
        self.step.finite.skipped = 0

    def _end_startup(self, log: MetricsLog) -> None:
        self.startup.lap("first step")
        main = self.step.accelerator.is_main_process
        line = self.startup.end(RunFolder(self.folder).startup if main else None)
        if line is not None:
            log.print_main(line)

    def _new_interval(self) -> Interval:
        objective, device = self.step.objective, self.step.accelerator.device
        names = tuple(objective.weights)
        return Interval(names, device, self.meter, self._timeline, objective.observed)

    def _save(self, step: int, writer: CheckpointWriter, scores: dict[str, float]) -> None:
        if not self.step.finite.taken:
            return  # weights are what they were at the start, and there may be no moments yet
        state = {
            "data": data_position(self._plan, self._train.seed, step),
            "broken_clips": self._broken.count,
            "development": scores,
            "score": self._compared(scores) if scores else None,
            "selection": self.selection.state(),
            "run": dict(self.identity),
        }
        self.marks.at("saving", step)
        writer.wait()  # before the copy: two at once would need the host's memory twice
        model, optimizer = self.step.model, self.step.optimizer
        average = None if self.step.average is None else self.step.average.tensors
        snapshot = checkpoint.take_snapshot(
            self.step.accelerator, model, optimizer, step, state, average
        )
        writer.start(snapshot)


@dataclass(kw_only=True)
class Step:
    """Takes optimizer steps. Sums over global counts: no process's mean enters (Eq. 21-23).

    Attributes:
        model: prepared by the accelerator, as is the optimizer.
        average: of the model's weights, renewed after each step; None: none is kept.
        agreement: what the processes exchange before each step.
        finite: refuses steps that are not finite.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    objective: Objective
    plan: Plan
    stage: StageConfig
    train: TrainConfig
    average: WeightAverage | None = None

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.objective, self.accelerator.num_processes)
        # Looking for them in every step costs more than clipping them.
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.finite = FiniteSteps(self.model, self.agreement, self.train.non_finite)

    def take(
        self,
        step: int,
        window: Sequence[TrainingBatch],
        counts: dict[str, float],
        interval: Interval,
    ) -> None:
        """Take step ``step`` (from 0) and note its losses and gradient norm in ``interval``.

        A step that is not finite is not taken, and noted by ``finite`` alone.

        DeepSpeed and DDP average gradients over processes, and Accelerate over accumulation; the
        factor takes both back.
        """
        peak = self.stage.learning_rate
        set_learning_rate(self.optimizer, learning_rate(step, self.plan, peak))
        scale = self.accelerator.num_processes * self.plan.accumulation
        weights = self.objective.weights
        losses: list[dict[str, Tensor]] = []
        norm, taken = None, False
        self.finite.begin()
        for part, compared in enumerate(self._compare(step, window)):
            batch = window[part].to(self.accelerator.device)
            self._seed(step, part)
            with self.accelerator.accumulate(self.model):
                sums = self.objective(self.model, batch, compared)
                terms = [weights[n] * sums[n] / max(counts[n], 1) for n in sums if n in weights]
                loss = marked(torch.stack(terms).sum()) * scale
                _call_after_backward(loss, lambda: interval.enter(OPTIMIZER))
                self.accelerator.backward(loss)
                interval.enter(OPTIMIZER)
                if self.accelerator.sync_gradients:
                    norm = self._clip()
                    taken = self.finite.allows(norm)
                    if taken:
                        self.optimizer.step()
                self.optimizer.zero_grad()
            interval.enter(OTHER)
            losses.append({name: loss.detach() for name, loss in sums.items()})
        if not taken:
            self.finite.refuse(step + 1, window, [list(of.values()) for of in losses])
            return
        self.finite.note_taken()
        if self.average is not None:
            self.average.update(step + 1)
        interval.gradient_norm = norm
        for sums in losses:
            interval.add(sums, counts)
        interval.observe(counts)
        interval.steps += 1

    def _compare(self, step: int, window: Sequence[TrainingBatch]) -> Sequence[Any]:
        """Return what each micro batch has of a loss over all of them, None where there is none.

        Gradient caching (Gao et al., 2021): memory of one micro batch, for another run of what
        makes the summaries. With one micro batch a step there is nothing to cache.
        """
        if not (self.plan.caches_gradients and self.objective.compares):
            return [None] * len(window)
        summaries = []
        with torch.no_grad(), _buffers_kept(self.model):
            for part, batch in enumerate(window):
                self._seed(step, part)
                on_device = batch.to(self.accelerator.device)
                summaries.append(self.objective.summarise(self.model, on_device))
        return self.objective.compare(window, summaries)

    def _seed(self, step: int, part: int) -> None:
        """Key the randomness by step, process and micro batch: resumed and repeated runs agree."""
        key = [self.train.seed, step, self.accelerator.process_index, part]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        if self.accelerator.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # alone: torch's asks each kind of device
        else:
            torch.manual_seed(seed)

    def _clip(self) -> Any:
        """Clip (plain DDP) or ask what was clipped (DeepSpeed clips by its own dictionary)."""
        model: Any = self.model
        if hasattr(model, "get_global_grad_norm"):
            return model.get_global_grad_norm()
        # 0 is no clipping, as in DeepSpeed.
        limit = self.train.gradient_clipping or math.inf
        return torch.nn.utils.clip_grad_norm_(self._trained, limit)


def _call_after_backward(loss: Tensor, call: Callable[[], None]) -> None:
    """Call as soon as the backward pass of ``loss`` has gone through the graph.

    What engines do then, such as the exchange of gradients that is not hidden and all of
    DeepSpeed's step, runs within the call of ``backward``: no mark of ours could come between.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    loss.register_hook(lambda _: engine.queue_callback(call))


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back at the end: norm statistics count each micro batch once.

    At the end, so that each micro batch finds the statistics that it will find again.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    fused: bool = False,
    factor_of: Callable[[str], float] = lambda parameter: 1.0,
) -> torch.optim.AdamW:
    """Return torch's AdamW over the parameters of ``model`` that require a gradient.

    ``factor_of`` gives the factor of the rate of a parameter, by its name; those of one factor
    share their groups.

    Paper: "weight decay 0.01". Here: not on biases and norm gains. Because: decay there pulls a
    norm's gain, which starts at the LLM's own scale, to zero without any regularising effect.
    Groups without a parameter are left out: DeepSpeed fails on them. ``fused`` takes one kernel for
    all parameters, where a GPU would be given some for each.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_factor.setdefault(factor_of(name), []).append(parameter)
    groups = [
        {
            "params": [p for p in trained if (p.ndim > 1) == decays],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": learning_rate * factor,
            _FACTOR: factor,
        }
        for factor, trained in by_factor.items()
        for decays in (True, False)
    ]
    # Not foreach: one order of operations, whatever the sizes of ZeRO's partitions.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=learning_rate, foreach=False, fused=fused
    )


_FACTOR = "rate_factor"  # entry of a parameter group


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of every group, ``value`` times its factor, which is 1 where it has none.

    The schedule is a function of the step and has no state.
    """
    for group in optimizer.param_groups:
        group["lr"] = value * group.get(_FACTOR, 1.0)
