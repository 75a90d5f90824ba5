"""The plan of a blend of many clips: memory, and seconds at a start, at a resume and a step.

Nothing is read: the lengths of the clips are drawn, and what is measured is what training does with
them before it reads a clip.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from signfuse_dist.answer import answer
from signfuse_dist.blend import Blend, BlendedMicroBatches, BlendFrames, share_draws
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.errors import UserError
from signfuse_dist.plan import make_plan

_SHARES = (0.9, 0.09, 0.01)  # of the clips, of three corpora
_MAX_FRAMES = 256
_T = TypeVar("_T")


@dataclass(frozen=True)
class BlendBench:
    """What is blended, and how it is shared out."""

    clips: int = field(
        default=10_000_000, metadata={"help": "of all corpora (default: %(default)s)"}
    )
    processes: int = field(default=8, metadata={"help": "(default: %(default)s)"})
    batch: int = field(default=256, metadata={"help": "clips of a step (default: %(default)s)"})
    steps: int = field(default=500, metadata={"help": "that are timed (default: %(default)s)"})

    def __post_init__(self) -> None:
        if self.clips < 1000 or self.processes < 1 or self.steps < 1:
            raise UserError("at least 1000 clips, 1 process and 1 step")
        if self.batch < 1 or self.batch % self.processes:
            raise UserError(f"--batch {self.batch} does not divide by --processes {self.processes}")


def bench_blend(asked: BlendBench) -> str:
    """Return what was measured, a line each; seconds are processor seconds of this process."""
    sizes = tuple(int(asked.clips * share) for share in _SHARES)
    drawn = np.random.default_rng(0).gamma(4, 25, sum(sizes))
    lengths = drawn.clip(4, _MAX_FRAMES).astype(np.int32)
    stage = StageConfig(name="finetune", epochs=5, learning_rate=1e-4, warmup_epochs=1)
    train = TrainConfig(
        micro_batch_size=asked.batch // asked.processes,
        global_batch_size=asked.batch,
        precision="bf16",
        gradient_clipping=1.0,
    )
    blend = Blend(sizes, share_draws(sizes, (1.0, 1.0, 1.0), 5.0), 0)
    plan = make_plan(blend.num_draws, stage, train, asked.processes)
    frames = BlendFrames(lengths, _MAX_FRAMES, AugmentConfig(speed=0.1), 0)

    def first_at(step: int) -> BlendedMicroBatches:
        order = BlendedMicroBatches(plan, blend, frames.counts, 0, step)
        order[0]
        return order

    tracemalloc.start()
    first_at(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    order, start = _timed(lambda: first_at(0))
    _, resumed = _timed(lambda: first_at(5 * plan.steps_per_epoch // 2))
    _, walked = _timed(lambda: [order[item] for item in range(asked.steps)])
    _, fullest = _timed(lambda: order.fullest(8))
    rows = {
        "clips of each corpus": ", ".join(f"{n:,}" for n in sizes),
        "draws of an epoch": ", ".join(f"{n:,}" for n in blend.draws),
        "steps of an epoch": f"{plan.steps_per_epoch:,} of {asked.batch} clips",
        "lengths of the clips": f"{lengths.nbytes / 1e6:.0f} MB",
        "memory beside them": f"{peak / 1e6:.2f} MB",
        "first micro batch at the start": f"{start * 1e3:.2f} ms",
        "first micro batch, middle of epoch 3": f"{resumed * 1e3:.2f} ms",
        "each of the next": f"{walked / asked.steps * 1e3:.2f} ms",
        "looking for the fullest": f"{fullest:.2f} s",
    }
    return "\n".join(f"{what:38s} {value}" for what, value in rows.items())


def _timed(what: Callable[[], _T]) -> tuple[_T, float]:
    began = time.process_time()
    made = what()
    return made, time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement that the command line describes."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/blend.py",
        description="Plan a blend of three corpora with 90, 9 and 1 percent of the clips, and find "
        "places in it. Printed are processor seconds of this process, and memory.",
        epilog="Example: python benchmarks/blend.py --clips 1000000. Figures: docs/benchmarks.md.",
    )
    add_options(command, BlendBench)
    command.set_defaults(run=_blend)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _blend(options: argparse.Namespace) -> int:
    print(bench_blend(from_options(BlendBench, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
