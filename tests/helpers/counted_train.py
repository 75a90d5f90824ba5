"""The trainer, which at its end writes how many numbers each process's optimizer holds.

accelerate launch --config_file FILE tests/helpers/counted_train.py FOLDER WORDS...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from signfuse_dist import train
from signfuse_dist.engine import loop
from signfuse_dist.engine.checkpoint import trained_parameters

FOLDER = Path(sys.argv[1])


class CountingLoop(loop.Loop):
    """The engine's loop, looked at when it ends."""

    def run(
        self,
        batches: Iterator[Any],
        start_step: int,
        set_mode: Callable[[], None],
        broken_clips: int = 0,
    ) -> bool:
        """Train as ever, then count."""
        finished = super().run(batches, start_step, set_mode, broken_clips)
        base = self.step.optimizer
        while hasattr(base, "optimizer"):  # Accelerate's and DeepSpeed's wrappers
            base = base.optimizer
        states = [value for state in base.state.values() for value in state.values()]
        module = self.step.accelerator.unwrap_model(self.step.model)
        counts = {
            "held": sum(v.numel() for v in states if torch.is_tensor(v) and v.ndim > 0),
            "trained": sum(p.numel() for _, p in trained_parameters(module)),
            "kind": str(self.step.accelerator.distributed_type),
            "processes": self.step.accelerator.num_processes,
        }
        path = FOLDER / f"{self.step.accelerator.process_index}.json"
        path.write_text(json.dumps(counts), encoding="utf-8")
        return finished


train.Loop = CountingLoop  # type: ignore[misc, attr-defined]
sys.exit(train.main(sys.argv[2:]))
