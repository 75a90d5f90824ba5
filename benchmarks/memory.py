"""Peak memory and time of the encoders over clip lengths and the ways to run the ResNet.

Each case runs in a process of its own, because memory that was once resident stays so. Figures and
what they mean: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from signfuse_dist.answer import answer
from signfuse_dist.batch import SignBatch
from signfuse_dist.cli import add_options, from_options, parse, whole_numbers
from signfuse_dist.cli.training import add_run
from signfuse_dist.config import LossConfig, ModelConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.experiment import load_stages
from signfuse_dist.sections import build_section
from signfuse_dist.skeleton import NUM_JOINTS

_WARMUP_FRAMES = 2  # one would let torch.compile take the number of frames for a constant


@dataclass(frozen=True)
class MemoryCase:
    """What is run: ``part`` is `visual`, the visual stream, or `step`, the contrastive stage."""

    model: dict[str, Any]
    part: str
    frames: int
    clips: int
    frame_size: int
    bf16: bool
    threads: int


def measure(case: MemoryCase) -> dict[str, float]:
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


def _passes(case: MemoryCase, device: torch.device) -> Callable[[SignBatch], None]:
    """Return a function that runs forward and backward passes of the case's part."""
    errors: list[str] = []
    config = build_section("model", ModelConfig, case.model, errors)
    raise_together(errors, "not a model")
    assert config is not None
    build = _visual if case.part == "visual" else _step
    model, loss = build(config)
    model.to(device).train()

    def run(batch: SignBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            total = loss(batch)
        torch.autograd.backward(total)

    return run


def _visual(config: ModelConfig) -> tuple[nn.Module, Callable[[SignBatch], Tensor]]:
    from signfuse_dist.model.building import build_visual

    stream = build_visual(config)

    def loss(batch: SignBatch) -> Tensor:
        steps = (batch.frame_lengths + config.visual_stride - 1) // config.visual_stride
        longest = batch.pose.shape[1]
        out: Tensor = stream(batch.frames, batch.frame_lengths, steps, batch.weight, longest)
        return out.float().square().mean()

    return stream, loss


def _step(config: ModelConfig) -> tuple[nn.Module, Callable[[SignBatch], Tensor]]:
    from signfuse_dist.model.signfuse import SignFuse
    from signfuse_dist.objective import StageObjective, prepare

    model, losses = SignFuse(config, None), LossConfig()
    prepare(model, "contrastive", losses)
    objective = StageObjective("contrastive", losses)
    return model, lambda batch: objective(model, batch)["contrastive"]


def _draw(case: MemoryCase, frames: int) -> SignBatch:
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


# What a process of one case is started with, before the case as JSON.
_ONE_CASE = "--one-case"
# What can be tried beside chunks and blocks, by name.
OPTIONS: dict[str, dict[str, Any]] = {
    "channels_last": {"visual_channels_last": True},
    "compile": {"visual_compile": True},
    "bf16": {},
}


@dataclass(frozen=True)
class MemoryBench:
    """What to measure: a table of :class:`MemoryCase`."""

    experiment: str
    overrides: Sequence[str]
    part: Literal["visual", "step"] = field(
        default="visual",
        metadata={
            "help": "the visual stream alone, or a step of the contrastive stage "
            "(default: %(default)s)"
        },
    )
    frames: Sequence[int] = field(
        default=(16, 32, 64),
        metadata={
            "type": whole_numbers,
            "metavar": "T,T,...",
            "help": "frames a clip (default: 16,32,64)",
        },
    )
    chunks: Sequence[int] = field(
        default=(4, 8),
        metadata={
            "type": whole_numbers,
            "metavar": "N,N,...",
            "help": "frames at once (default: 4,8)",
        },
    )
    options: Sequence[Literal["channels_last", "bf16", "compile"]] = field(
        default=("channels_last", "bf16", "compile"),
        metadata={"help": "also tried at the largest length (default: all three)"},
    )
    clips: int = field(default=1, metadata={"help": "in the batch (default: %(default)s)"})
    threads: int = field(default=1, metadata={"help": "of a CPU (default: %(default)s)"})


def run(bench: MemoryBench) -> str:
    """Measure every case and return a table.

    For each number of frames: the ResNet run whole, by blocks, and in chunks of each size. For
    the largest number also each option, run whole. A case that fails is a row that says why.
    Raises UserError for numbers that cannot be.
    """
    numbers = (*bench.frames, *bench.chunks, bench.clips, bench.threads)
    if min(numbers) < 1:
        raise UserError(f"benchmarks/memory.py: {min(numbers)} is not at least 1")
    rows: list[tuple[str, ...]] = [("frames", "ResNet", "peak MB", "a frame", "seconds", "x whole")]
    for frames in bench.frames:
        whole = None
        for name, changes in _ways(bench, frames):
            figures = _measure(_case(bench, frames, name, changes))
            whole = figures if name == "whole" else whole
            rows.append(_row(frames, bench.clips, name, figures, whole))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    return "\n".join([f"{_machine()}; part {bench.part}, clips {bench.clips}", *table])


def _ways(bench: MemoryBench, frames: int) -> list[tuple[str, dict[str, Any]]]:
    ways: list[tuple[str, dict[str, Any]]] = [
        ("whole", {}),
        ("blocks", {"visual_checkpoint": True}),
    ]
    ways += [(f"chunks of {size}", {"visual_chunk": size}) for size in bench.chunks]
    if frames == max(bench.frames):
        ways += [(name, OPTIONS[name]) for name in bench.options]
    return ways


def _case(bench: MemoryBench, frames: int, name: str, changes: dict[str, Any]) -> MemoryCase:
    """Return a case of the experiment's model with some changes."""
    changes = {"visual_chunk": None, **changes}
    overrides = [*bench.overrides, *(f"model.{k}={json.dumps(v)}" for k, v in changes.items())]
    run = load_stages(bench.experiment, overrides)[0]
    return MemoryCase(
        model=dataclasses.asdict(run.model),
        part=bench.part,
        frames=frames,
        clips=bench.clips,
        frame_size=run.data.frame_size,
        bf16=name == "bf16",
        threads=bench.threads,
    )


def _measure(case: MemoryCase) -> dict[str, float] | str:
    """Return the figures of a case, or why there are none."""
    text = json.dumps(dataclasses.asdict(case))
    done = subprocess.run(
        [sys.executable, __file__, _ONE_CASE, text],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(case.threads)},
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    lines = done.stderr.strip().splitlines()
    return f"status {done.returncode}: {lines[-1] if lines else 'killed, out of memory perhaps'}"


def _row(
    frames: int,
    clips: int,
    name: str,
    figures: dict[str, float] | str,
    whole: dict[str, float] | str | None,
) -> tuple[str, ...]:
    if isinstance(figures, str):
        return str(frames), name, figures, "", "", ""
    peak, seconds = figures["peak_bytes"] / 1e6, figures["seconds"]
    ratio = f"{seconds / whole['seconds']:.2f}" if isinstance(whole, dict) else "-"
    return (
        str(frames),
        name,
        f"{peak:.0f}",
        f"{peak / frames / clips:.2f}",
        f"{seconds:.2f}",
        ratio,
    )


def _machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"torch {torch.__version__} on {where}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/memory.py",
        description="Run a forward and backward pass for each length: the ResNet whole, recomputed "
        "by blocks, and in chunks of frames; and the options at the largest length. Prints what a "
        "pass adds to model, gradients and batch at rest, and its time. Frames are drawn; no data "
        "and no LLM is read.",
        epilog="Example: python benchmarks/memory.py demo model=smollm2_135m --frames 8,16 "
        "--chunks 4. Figures: docs/benchmarks.md.",
    )
    add_run(command)
    add_options(command, MemoryBench)
    command.set_defaults(run=_memory)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _memory(options: argparse.Namespace) -> int:
    run_of = {"experiment": options.experiment, "overrides": options.overrides}
    print(run(from_options(MemoryBench, options, **run_of)))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [_ONE_CASE]:
        print(json.dumps(measure(MemoryCase(**json.loads(sys.argv[2])))))
    else:
        sys.exit(main())
