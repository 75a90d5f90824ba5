"""What has happened between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from signfuse_dist.engine.agreement import Agreed
from signfuse_dist.engine.hardware import peak_memory
from signfuse_dist.engine.meter import Meter
from signfuse_dist.engine.timeline import Timeline


class Interval:
    """Losses, counts and times since the last log line.

    Losses and the gradient's norm stay on the device, and its clock is not asked, until
    :meth:`close`: a step that does not log waits for nothing here.
    """

    def __init__(
        self, names: Sequence[str], device: torch.device, meter: Meter, timeline: Timeline
    ) -> None:
        self.names, self.device = names, device
        self._meter, self._timeline = meter, timeline
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.started = time.perf_counter()
        self.steps, self.waited, self.frames, self.clips, self.broken = 0, 0.0, 0.0, 0.0, 0
        self.gradient_norm: Any = 0.0
        self._most_frames = 0.0
        self._flops = dict.fromkeys(meter.components, 0.0)
        timeline.restart()

    def add(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Add one micro batch's losses: sums of this process over counts of all."""
        means = [sums[n].detach().double() / max(counts[n], 1) for n in self.names]
        self.sums += torch.stack(means)

    def count(self, agreed: Agreed, window: Iterable[Any]) -> None:
        """Add what all processes bring to a step, and what this one's batches will cost."""
        self.frames += agreed.frames
        self._most_frames += agreed.most_frames
        self.clips += agreed.clips
        self.broken += agreed.broken
        if self._meter.cost is not None:
            for batch in window:
                for name, cost in self._meter.cost(batch).items():
                    self._flops[name] += cost.forward + cost.backward

    def enter(self, name: str) -> None:
        """Let the time from here on belong to ``name``, until a component begins."""
        self._timeline.mark(name)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time until the end of the block."""
        started = time.perf_counter()
        with self._timeline.paused():
            yield
        self.started += time.perf_counter() - started

    def close(self, num_processes: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean of each loss, and the other figures of the interval, of all processes.

        Means are over the steps that were taken; without one there are none, and no gradient norm.
        Waits for the device; every process calls it at the same step.
        """
        seconds = self._timeline.take()
        elapsed = time.perf_counter() - self.started
        mine = [*self._flops.values(), *seconds.values()]
        sums = torch.cat((self.sums, self.sums.new_tensor(mine)))
        peak = self.sums.new_tensor([peak_memory(self.device)])
        if num_processes > 1:
            dist.all_reduce(sums)
            dist.all_reduce(peak, dist.ReduceOp.MAX)
        found = sums.tolist()
        means = [value / max(1, self.steps) for value in found[: len(self.names)]]
        totals = found[len(self.names) :]
        flops = dict(zip(self._flops, totals, strict=False))
        spent = dict(zip(seconds, totals[len(flops) :], strict=True))
        figures = {
            **self._meter.constants,
            **self._rates(elapsed, num_processes),
            "peak_memory_gb": peak.item() / 1e9,
            **self._costs(flops, elapsed, num_processes),
            **self._parts(flops, spent, num_processes),
        }
        if not self.steps:
            figures.pop("gradient_norm")
            return {}, figures
        return dict(zip(self.names, means, strict=True)), figures

    def _rates(self, elapsed: float, num_processes: int) -> dict[str, float]:
        """Return speeds over all processes, and the share of time spent waiting for data."""
        return {
            "gradient_norm": float(self.gradient_norm),
            "clips_per_second": self.clips / elapsed,
            "frames_per_second": self.frames / elapsed,
            "frames_per_second_per_device": self.frames / elapsed / num_processes,
            "seconds_per_step": elapsed / max(1, self.steps),
            "data_wait": self.waited / elapsed,
            "balance": self.frames / max(self._most_frames * num_processes, 1.0),
        }

    def _costs(
        self, flops: dict[str, float], elapsed: float, num_processes: int
    ) -> dict[str, float]:
        if self._meter.cost is None:
            return {}
        rate = sum(flops.values()) / elapsed / num_processes
        costs = {"teraflops_per_second_per_device": rate / 1e12}
        return costs if self._meter.peak is None else {**costs, "mfu": rate / self._meter.peak}

    def _parts(
        self, flops: dict[str, float], spent: dict[str, float], num_processes: int
    ) -> dict[str, float]:
        """Return seconds a step (mean over processes), operations a step (of all) and MFU."""
        a_step, found = num_processes * max(1, self.steps), {}
        for name, operations in flops.items():
            took = spent.pop(f"{name} forward") + spent.pop(f"{name} backward")
            found[f"{name}/seconds"] = took / a_step
            if self._meter.cost is not None:
                found[f"{name}/teraflops"] = operations / max(1, self.steps) / 1e12
                if self._meter.peak is not None and took > 0:
                    found[f"{name}/mfu"] = operations / took / self._meter.peak
        return {**found, **{f"{name}/seconds": s / a_step for name, s in spent.items()}}
