"""One case of `signfuse bench memory`, in a process of its own.

``python -m signfuse_dist.bench.memory_case CASE`` takes the case as JSON and prints its figures as
JSON. What another case left behind cannot count.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from signfuse_dist import config_fields
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, ModelConfig
from signfuse_dist.errors import raise_together
from signfuse_dist.skeleton import NUM_JOINTS

_WARMUP_FRAMES = 2  # one would let torch.compile take the number of frames for a constant


@dataclass(frozen=True)
class Case:
    """What is run: ``part`` is `visual`, the visual stream, or `step`, the contrastive stage."""

    model: dict[str, Any]
    part: str
    frames: int
    clips: int
    frame_size: int
    bf16: bool
    threads: int


def measure(case: Case) -> dict[str, float]:
    """Return ``peak_bytes`` above rest and ``seconds`` of a forward and backward pass.

    At rest are the model, its gradients and the batch. On a GPU bytes are those that torch has
    allocated, on a CPU those of the process that are resident.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _passes(case, device)
    run(_draw(case, _WARMUP_FRAMES).to(device))
    batch = _draw(case, case.frames).to(device)
    before = _reset_peak(device)
    first = _timed(run, batch, device)
    peak = _peak(device) - before
    return {"peak_bytes": float(peak), "seconds": min(first, _timed(run, batch, device))}


def _passes(case: Case, device: torch.device) -> Callable[[SignBatch], None]:
    """Return a function that runs forward and backward passes of the case's part."""
    errors: list[str] = []
    config: ModelConfig = config_fields.build("model", ModelConfig, case.model, errors)
    raise_together(errors, "not a model")
    build = _visual if case.part == "visual" else _step
    model, loss = build(config)
    model.to(device).train()

    def run(batch: SignBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            total = loss(batch)
        torch.autograd.backward(total)

    return run


def _visual(config: ModelConfig) -> tuple[nn.Module, Callable[[SignBatch], Tensor]]:
    from signfuse_dist.model import parts

    stream = parts.visual_stream(config)

    def loss(batch: SignBatch) -> Tensor:
        steps = (batch.frame_lengths + config.visual_stride - 1) // config.visual_stride
        out: Tensor = stream(batch.frames, batch.frame_lengths, steps, batch.weight)
        return out.float().square().mean()

    return stream, loss


def _step(config: ModelConfig) -> tuple[nn.Module, Callable[[SignBatch], Tensor]]:
    from signfuse_dist.model.signfuse import SignFuse
    from signfuse_dist.stages import StageObjective, prepare

    model, losses = SignFuse(config, None), LossConfig()
    prepare(model, "contrastive", losses)
    objective = StageObjective("contrastive", losses)
    return model, lambda batch: objective(model, batch)["contrastive"]


def _draw(case: Case, frames: int) -> SignBatch:
    size = (case.clips * frames, 3, case.frame_size, case.frame_size)
    return SignBatch(
        ids=tuple(str(i) for i in range(case.clips)),
        frames=torch.randint(0, 256, size, dtype=torch.uint8),
        pose=torch.rand(case.clips, frames, NUM_JOINTS, 2),
        joint_mask=torch.ones(case.clips, frames, NUM_JOINTS, dtype=torch.bool),
        frame_lengths=torch.full((case.clips,), frames),
        weight=torch.ones(case.clips),
    )


def _timed(run: Callable[[SignBatch], None], batch: SignBatch, device: torch.device) -> float:
    started = time.perf_counter()
    run(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _reset_peak(device: torch.device) -> int:
    """Let the peak start from now; return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident("VmHWM")


def _resident(key: str) -> int:
    """Return a line of this process's status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux only")


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
