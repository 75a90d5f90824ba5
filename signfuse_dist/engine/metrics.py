"""What a run says: one line a log interval, and the same figures in ``metrics.jsonl``."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from signfuse_dist.engine.guards import Agreed
from signfuse_dist.engine.objective import Meter
from signfuse_dist.engine.timing import Timeline
from signfuse_dist.files import read_text, write_text
from signfuse_dist.progress import Progress
from signfuse_dist.run_folder import RunFolder

# Dense bfloat16 operations a second from the makers' data sheets, by a part of the name that CUDA
# gives; the first that fits counts.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("GH200", 989e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the operations a second that a device can do; None where they are not known.

    They are known for bfloat16 on the GPUs of the table, and for nothing else.
    """
    if precision != "bf16":
        return None
    words = device_name.replace("-", " ")
    for part, peak in _PEAKS:
        if f" {part} " in f" {words} ":
            return peak
    return None


def device_name(device: torch.device) -> str:
    """Return the name that CUDA has for a GPU; a CPU is called CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that this process has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Interval:
    """Losses, counts and times since the last log line.

    Losses and the gradient's norm stay on the device, and its clock is not asked, until
    :meth:`close`: a step that does not log waits for nothing here.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        meter: Meter,
        timeline: Timeline,
        observed: Sequence[str] = (),
    ) -> None:
        """``observed`` are losses that not every step has: each is averaged over all its counts."""
        self.names, self.observed, self.device = names, observed, device
        self._seen = torch.zeros(len(observed), dtype=torch.float64, device=device)
        self._counts = dict.fromkeys(observed, 0.0)
        self._meter, self._timeline = meter, timeline
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.started = time.perf_counter()
        self.steps, self.waited, self.frames, self.clips, self.broken = 0, 0.0, 0.0, 0.0, 0
        self.gradient_norm: Any = 0.0
        self._needed, self._slowest = 0.0, 0.0
        self._flops = dict.fromkeys(meter.components, 0.0)
        timeline.restart()

    def add(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Add one micro batch's losses: sums of this process over counts of all."""
        means = [sums[n].detach().double() / max(counts[n], 1) for n in self.names]
        self.sums += torch.stack(means)
        if self.observed:
            self._seen += torch.stack([sums[n].detach().double() for n in self.observed])

    def observe(self, counts: dict[str, float]) -> None:
        """Add what the observed losses of a step are averaged over, of all processes."""
        for name in self.observed:
            self._counts[name] += counts[name]

    def count(self, agreed: Agreed, window: Iterable[Any]) -> None:
        """Add what all processes bring to a step, and what this one's batches will cost."""
        self.frames += agreed.frames
        self._needed += agreed.needed
        self._slowest += agreed.slowest
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
        sums = torch.cat((self.sums, self._seen, self.sums.new_tensor(mine)))
        peak = self.sums.new_tensor([peak_memory(self.device)])
        if num_processes > 1:
            dist.all_reduce(sums)
            dist.all_reduce(peak, dist.ReduceOp.MAX)
        totals = sums.tolist()
        means = [value / max(1, self.steps) for value in totals[: len(self.names)]]
        seen = zip(self.observed, totals[len(self.names) :], strict=False)
        seen_means = {n: v / self._counts[n] for n, v in seen if self._counts[n]}
        totals = totals[len(self.names) + len(self.observed) :]
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
        return {**dict(zip(self.names, means, strict=True)), **seen_means}, figures

    def _rates(self, elapsed: float, num_processes: int) -> dict[str, float]:
        """Return speeds over all processes, and the share of time spent waiting for data.

        ``balance`` is the share of what processes could compute that is clips: the rest is padding,
        and waiting for the process that has most in a micro batch. They wait at each under ZeRO-2,
        which reduces gradients then, and where norms or Eq. 21 see clips of all processes.
        """
        return {
            "gradient_norm": float(self.gradient_norm),
            "clips_per_second": self.clips / elapsed,
            "frames_per_second": self.frames / elapsed,
            "frames_per_second_per_device": self.frames / elapsed / num_processes,
            "seconds_per_step": elapsed / max(1, self.steps),
            "data_wait": self.waited / elapsed,
            "balance": self._needed / max(self._slowest * num_processes, 1.0),
        }

    def _costs(
        self, flops: dict[str, float], elapsed: float, num_processes: int
    ) -> dict[str, float]:
        if self._meter.cost is None or self._meter.uncounted:
            return {}
        rate = sum(flops.values()) / elapsed / num_processes
        costs = {"teraflops_per_second_per_device": rate / 1e12}
        return costs if self._meter.peak is None else {**costs, "mfu": rate / self._meter.peak}

    def _parts(
        self, flops: dict[str, float], spent: dict[str, float], num_processes: int
    ) -> dict[str, float]:
        """Return seconds a step (mean over processes), operations a step (of all) and MFU."""
        a_step, figures = num_processes * max(1, self.steps), {}
        for name, operations in flops.items():
            seconds = spent.pop(f"{name} forward") + spent.pop(f"{name} backward")
            figures[f"{name}/seconds"] = seconds / a_step
            if self._meter.cost is not None and name not in self._meter.uncounted:
                figures[f"{name}/teraflops"] = operations / max(1, self.steps) / 1e12
                if self._meter.peak is not None and seconds > 0:
                    figures[f"{name}/mfu"] = operations / seconds / self._meter.peak
        return {**figures, **{f"{name}/seconds": s / a_step for name, s in spent.items()}}


class MetricsLog:
    """Writes ``metrics.jsonl`` and says the same in short; silent on every process but the first.

    A resumed run drops the lines after its checkpoint, so each step stands in the file once.
    """

    def __init__(self, folder: Path, total_steps: int, start_step: int, active: bool) -> None:
        self._file = None
        self._pending = b""
        self._progress = Progress(
            folder.name, total_steps, "step", done=start_step, active=active, lines=False
        )
        if active:
            path = RunFolder(folder).metrics
            _keep_until(path, start_step)
            self._file = path.open("ab", buffering=0)

    def advance(self) -> None:
        """Note that one more step is taken."""
        self._progress.advance()

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line to the file, and say the same in short."""
        if self._file is None:
            return
        self._append(f"{json.dumps(values)}\n".encode())
        self._progress.log(in_short(values))

    def _append(self, line: bytes) -> None:
        """Write what is pending; what a full disk refuses is said, and tried again next time."""
        assert self._file is not None
        self._pending += line
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as e:
            self.print_main(
                f"{self._file.name} cannot be written ({e.strerror}): training goes on, and its "
                f"last {len(self._pending)} bytes are written when there is room"
            )

    def print_main(self, text: str) -> None:
        """Print a line on the main process."""
        if self._file is not None:
            self._progress.log(text)

    def close(self) -> None:
        """Close the file and end the progress."""
        self._progress.close()
        if self._file is not None:
            self._append(b"")
            self._file.close()


# What the line a log interval has of each figure; the file has them all.
_SHORT = (
    ("epoch", "epoch {:d}"),
    ("total", "total {:.4g}"),
    ("contrastive", "contrastive {:.4g}"),
    ("language", "language {:.4g}"),
    ("alignment", "alignment {:.4g}"),
    ("learning_rate", "rate {:.3g}"),
    ("gradient_norm", "gradient {:.3g}"),
    ("clips_per_second", "{:.3g} clips/s"),
    ("frames_per_second_per_device", "{:.4g} frames/s a device"),
    ("data_wait", "{:.0%} waiting for data"),
    ("balance", "balance {:.3g}"),
    ("mfu", "MFU {:.1%}"),
    ("peak_memory_gb", "{:.3g} GB"),
)


def in_short(values: Mapping[str, Any]) -> str:
    """Return the line that is printed for the values of a log interval."""
    parts = [form.format(values[key]) for key, form in _SHORT if key in values]
    if values.get("skipped"):
        parts.append(f"{values['skipped']} clips skipped")
    return ", ".join([f"step {values['step']}", *parts])


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in read_text(path).splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short when the process was killed; its steps are run again
    write_text(path, "".join(kept))
