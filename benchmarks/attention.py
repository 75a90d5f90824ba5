"""Time and peak memory of each attention backend over the length of the clips.

Forward and backward passes of self-attention with padding, as the model calls it. Figures and what
they mean: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from signfuse_dist.answer import answer
from signfuse_dist.batch import length_mask
from signfuse_dist.cli import add_options, from_options, parse, whole_numbers
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.attention import BACKENDS, Backend, attend, why_not

_WARMUP = 2
_MB = 2**20


@dataclass(frozen=True)
class AttentionBench:
    """What is measured: self-attention of clips whose lengths go evenly from T / 4 to T."""

    dtype: torch.dtype
    device: torch.device
    lengths: tuple[int, ...] = field(
        default=(64, 128, 256, 512),
        metadata={
            "type": whole_numbers,
            "metavar": "T,T,...",
            "help": "steps of the longest clip, as in 64,128 (default: 64,128,256,512)",
        },
    )
    batch_size: int = field(default=8, metadata={"help": "clips (default: %(default)s)"})
    dim: int = field(
        default=ModelConfig.dim, metadata={"help": "channels of a step (default: %(default)s)"}
    )
    heads: int = field(
        default=ModelConfig.num_heads, metadata={"help": "of attention (default: %(default)s)"}
    )
    repeats: int = field(
        default=10, metadata={"help": "passes that are timed (default: %(default)s)"}
    )

    def step_lengths(self, steps: int) -> Tensor:
        """Return the clips' lengths, int64 ``[batch_size]``, the longest of them ``steps``."""
        shares = torch.linspace(1.0, 0.25, self.batch_size)
        return (shares * steps).ceil().long()


@dataclass(frozen=True)
class Timing:
    """One forward and backward pass: the median of its seconds, and its peak of new memory."""

    seconds: float
    peak_bytes: int


def run(bench: AttentionBench) -> str:
    """Measure every backend that is here; return a table, and why the others are not here.

    Memory is that of tensors, beyond the inputs: as CUDA's allocator counts it on a GPU, and from
    torch's profiler on a CPU.
    """
    numbers = (*bench.lengths, bench.batch_size, bench.dim, bench.heads, bench.repeats)
    if min(numbers) < 1 or bench.dim % bench.heads:
        raise UserError("every number must be at least 1, and --dim must divide by --heads")
    reasons = {b: why_not(b, bench.device, bench.dtype, bench.dim // bench.heads) for b in BACKENDS}
    here = [backend for backend, reason in reasons.items() if reason is None]
    rows = [[measure(bench, backend, steps) for backend in here] for steps in bench.lengths]
    missing = [f"not here: {b}: {reason}" for b, reason in reasons.items() if reason is not None]
    return "\n".join([_headline(bench), "", *_table(bench, here, rows), "", *missing])


def measure(bench: AttentionBench, backend: Backend, steps: int) -> Timing | None:
    """Return the costs of ``backend`` at T = ``steps``; None when the GPU's memory is too small."""
    generator = torch.Generator().manual_seed(steps)
    shape = (bench.batch_size, steps, bench.dim)
    query, key, value, probe = (
        torch.randn(shape, generator=generator).to(bench.device, bench.dtype) for _ in range(4)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    mask = length_mask(bench.step_lengths(steps).to(bench.device), steps)

    def once() -> None:
        out = attend(query, key, value, bench.heads, mask, mask, backend)
        torch.autograd.grad(out, inputs, probe)

    try:
        for _ in range(_WARMUP):
            once()
        seconds = [_time(once, bench.device) for _ in range(bench.repeats)]
        return Timing(statistics.median(seconds), _peak(once, bench.device))
    except torch.OutOfMemoryError:
        return None


def _time(once: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    once()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(once: Callable[[], None], device: torch.device) -> int:
    if device.type != "cuda":
        return _peak_on_cpu(once)
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    once()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(once: Callable[[], None]) -> int:
    """Add up what the profiler saw allocated and freed, in the order of time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports that there is no GPU
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        once()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _headline(bench: AttentionBench) -> str:
    where = f"{torch.get_num_threads()} threads"
    if bench.device.type == "cuda":
        where = torch.cuda.get_device_name(bench.device)
    return (
        f"attention, forward and backward, median of {bench.repeats}: {bench.batch_size} clips of "
        f"T/4 to T steps, dim {bench.dim}, {bench.heads} heads, "
        f"{str(bench.dtype).removeprefix('torch.')}, {bench.device.type} ({where}), "
        f"torch {torch.__version__}"
    )


def _table(
    bench: AttentionBench, here: Sequence[Backend], rows: Sequence[Sequence[Timing | None]]
) -> list[str]:
    lines = ["     T" + "".join(f"{backend:>26s}" for backend in here)]
    for steps, timings in zip(bench.lengths, rows, strict=True):
        lines.append(f"{steps:6d}" + "".join(f"{_cell(timing):>26s}" for timing in timings))
    return lines


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return "out of memory"
    return f"{1000 * timing.seconds:.2f} ms {timing.peak_bytes / _MB:9.1f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/attention.py",
        description="Run forward and backward passes of attention with padding, for every backend "
        "that is here, and say why the others are not. Printed are the median time of a pass and "
        "the peak of memory beyond its inputs.",
        epilog="Example: OMP_NUM_THREADS=1 python benchmarks/attention.py --lengths 64,512. "
        "Figures: docs/benchmarks.md.",
    )
    add_options(command, AttentionBench)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: bfloat16 on a GPU, float32 on a CPU",
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    command.set_defaults(run=_attention)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _attention(options: argparse.Namespace) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    gpu = options.device == "cuda" or (options.device is None and torch.cuda.is_available())
    bench = from_options(
        AttentionBench,
        options,
        dtype=getattr(torch, options.dtype or ("bfloat16" if gpu else "float32")),
        device=torch.device("cuda" if gpu else "cpu"),
    )
    print(run(bench))
    return 0


if __name__ == "__main__":
    sys.exit(main())
