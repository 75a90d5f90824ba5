"""Where time goes: what a process is doing, the parts of a step, and the parts of a start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from signfuse_dist.files import write_text

Phase = Literal[
    "starting",
    "copying shards",
    "loading clips",
    "waiting for the others",
    "first step",
    "computing",
    "saving",
    "scoring",
    "ending",
]
WAITING: Phase = "waiting for the others"
# The others may take long: models are read, kernels built, files written to far disks.
QUICK: frozenset[Phase] = frozenset({"loading clips", "computing"})


class Marks:
    """What the main thread of a process does: set by the loop, read by the watch of `hang`."""

    def __init__(self) -> None:
        self.looks = 0
        """How often the watch has looked: its measure of time, which no suspension passes."""
        self.at("starting", 0)

    def at(self, phase: Phase, step: int) -> None:
        """Say that ``phase`` of step ``step`` (from 1) begins; costs next to nothing."""
        self.last = phase, step, self.looks


OTHER, OPTIMIZER = "other", "optimizer"
_PAUSED = "paused"


class Timeline:
    """Marks on the clock of one device: CUDA events there, a monotonic clock on a CPU."""

    def __init__(self, device: torch.device, components: Mapping[str, Sequence[nn.Module]]) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._hooks: list[Any] = []
        self._is_paused = False
        self.components = tuple(components)
        self.names = (
            *(f"{name} {way}" for name in components for way in ("forward", "backward")),
            OPTIMIZER,
            OTHER,
        )
        for name, modules in components.items():
            for module in modules:
                self._hooks += self._attach(name, module)

    def restart(self) -> None:
        """Forget all marks; the time from here on belongs to nothing in particular."""
        self._marks = []
        self.mark(OTHER)

    def mark(self, name: str) -> None:
        """Let the time from here on belong to ``name``."""
        if not self._is_paused:
            self._marks.append((name, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time until the end of the block, whatever modules are called in it."""
        self.mark(_PAUSED)
        self._is_paused = True
        yield
        self._is_paused = False
        self.mark(OTHER)

    def take(self) -> dict[str, float]:
        """Return the seconds of each name since the first mark, and begin again.

        The only place that waits for the device.
        """
        seconds = dict.fromkeys(self.names, 0.0)
        if not self._marks:
            return seconds
        marks, self._marks = [*self._marks, (OTHER, self._now())], []
        if self._on_gpu:
            marks[-1][1].synchronize()
        for (name, start), (_, end) in pairwise(marks):
            if name != _PAUSED:
                seconds[name] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start
        return seconds

    def detach(self) -> None:
        """Take the hooks off the modules."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _attach(self, name: str, module: nn.Module) -> list[Any]:
        def before(_: nn.Module, inputs: Any) -> None:
            self.mark(f"{name} forward")

        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            self.mark(OTHER)
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(begins)

        def begins(_: Tensor) -> None:
            self.mark(f"{name} backward")

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors of a module's result: one, several, or an output of transformers."""
    if isinstance(output, Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [v for v in values if isinstance(v, Tensor)] if isinstance(values, (tuple, list)) else []


class Startup:
    """Notes when each part of a start ended; the parts add up to the whole."""

    def __init__(self) -> None:
        """Begin with the time since the operating system started this process: the imports."""
        age = _age_of_process()
        self.seconds: dict[str, float] = {"imports": age}
        self._last = time.monotonic()
        self._ended = False

    def lap(self, part: str) -> None:
        """Let ``part`` end now; nothing is noted after the first step."""
        if self._ended:
            return
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def end(self, path: Path | None) -> str | None:
        """Write the parts to ``path`` (None: another process does) and return them as a line.

        None when the start has ended before.
        """
        if self._ended:
            return None
        self._ended = True
        total = sum(self.seconds.values())
        parts = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        if path is not None:
            write_text(path, json.dumps({"total": round(total, 3), **parts}, indent=1))
        return f"first step after {total:.1f} s: " + ", ".join(
            f"{name} {seconds:.1f}" for name, seconds in parts.items()
        )


def _age_of_process() -> float:
    """Return the seconds since this process was started; Linux counts ticks since its own start.

    Both clocks go on steadily whatever happens to the date.
    """
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
