"""What has happened between two log lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Interval:
    """Losses and counts since the last log line; losses stay on the device until it is written."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.started = time.perf_counter()
        self.steps, self.waited, self.frames, self.clips, self.broken = 0, 0.0, 0.0, 0.0, 0
        self.gradient_norm: Any = 0.0

    def add(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Add one micro batch's losses: sums of this process over counts of all."""
        means = [sums[n].detach().double() / max(counts[n], 1) for n in self.names]
        self.sums += torch.stack(means)

    def count(self, frames: float, clips: float, broken: int) -> None:
        """Add what all processes brought to a step."""
        self.frames += frames
        self.clips += clips
        self.broken += broken

    def rates(self) -> dict[str, float]:
        """Return speeds over all processes and the share of time spent waiting for data."""
        elapsed = time.perf_counter() - self.started
        return {
            "gradient_norm": float(self.gradient_norm),
            "clips_per_second": self.clips / elapsed,
            "frames_per_second": self.frames / elapsed,
            "data_wait": self.waited / elapsed,
        }
