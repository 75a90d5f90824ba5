"""Peak memory and time of the encoders over clip lengths and the ways to run the ResNet."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from signfuse_dist.bench.memory_case import Case
from signfuse_dist.config_load import load_stages
from signfuse_dist.errors import UserError

# What can be tried beside chunks and blocks, by the words for it.
OPTIONS: dict[str, dict[str, Any]] = {
    "channels_last": {"visual_channels_last": True},
    "compile": {"visual_compile": True},
    "bf16": {},
}


@dataclass(frozen=True)
class MemoryBench:
    """What to measure; ``part`` is `visual` or `step` (see :class:`.memory_case.Case`)."""

    experiment: str
    overrides: Sequence[str]
    part: str
    frames: Sequence[int]
    chunks: Sequence[int]
    options: Sequence[str]
    clips: int
    threads: int


def run(bench: MemoryBench) -> str:
    """Measure every case and return a table.

    For each number of frames: the ResNet run whole, by blocks, and in chunks of each size. For
    the largest number also each option, run whole. A case that fails is a row that says why.
    Raises UserError for numbers that cannot be.
    """
    numbers = (*bench.frames, *bench.chunks, bench.clips, bench.threads)
    if min(numbers) < 1:
        raise UserError(f"bench memory: {min(numbers)} is not at least 1")
    rows: list[tuple[str, ...]] = [("frames", "ResNet", "peak MB", "a frame", "seconds", "x whole")]
    for frames in bench.frames:
        whole = None
        for name, changes in _ways(bench, frames):
            figures = _measure(_case(bench, frames, name, changes))
            whole = figures if name == "whole" else whole
            rows.append(_row(frames, bench.clips, name, figures, whole))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
    about = f"{_about()}; part {bench.part}, clips {bench.clips}"
    return "\n".join([about, *table])


def _ways(bench: MemoryBench, frames: int) -> list[tuple[str, dict[str, Any]]]:
    ways: list[tuple[str, dict[str, Any]]] = [
        ("whole", {}), ("blocks", {"visual_checkpoint": True}),
    ]  # fmt: skip
    ways += [(f"chunks of {size}", {"visual_chunk": size}) for size in bench.chunks]
    if frames == max(bench.frames):
        ways += [(name, OPTIONS[name]) for name in bench.options]
    return ways


def _case(bench: MemoryBench, frames: int, name: str, changes: dict[str, Any]) -> Case:
    """Return a case of the experiment's model with some changes."""
    words = [*bench.overrides, *(f"model.{k}={json.dumps(v)}" for k, v in changes.items())]
    run = load_stages(bench.experiment, words)[0]
    return Case(
        model=dataclasses.asdict(run.model), part=bench.part, frames=frames, clips=bench.clips,
        frame_size=run.data.frame_size, bf16=name == "bf16", threads=bench.threads,
    )  # fmt: skip


def _measure(case: Case) -> dict[str, float] | str:
    """Return the figures of a case, or why there are none."""
    text = json.dumps(dataclasses.asdict(case))
    done = subprocess.run(
        [sys.executable, "-m", "signfuse_dist.bench.memory_case", text], check=False,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(case.threads)},
    )  # fmt: skip
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip().splitlines()
    return f"status {done.returncode}: {said[-1] if said else 'killed, out of memory perhaps'}"


def _row(
    frames: int, clips: int, name: str, figures: dict[str, float] | str,
    whole: dict[str, float] | str | None,
) -> tuple[str, ...]:  # fmt: skip
    if isinstance(figures, str):
        return str(frames), name, figures, "", "", ""
    peak, seconds = figures["peak_bytes"] / 1e6, figures["seconds"]
    ratio = f"{seconds / whole['seconds']:.2f}" if isinstance(whole, dict) else "-"
    return (
        str(frames), name, f"{peak:.0f}", f"{peak / frames / clips:.2f}", f"{seconds:.2f}", ratio
    )  # fmt: skip


def _about() -> str:
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"torch {torch.__version__} on {where}"
