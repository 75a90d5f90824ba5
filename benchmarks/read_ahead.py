"""What accumulation costs where clips are loaded about as fast as they are computed.

A step takes all micro batches of its window at once, because their counts divide its losses. Here a
step waits for its window and then computes for as long as loading that many batches takes, times a
factor: so a loop that never waited would run at the pace of computing. The ways take turns, the
loader that keeps a window and more ahead and one that keeps two whatever a step takes, and wall
time is measured: loading and computing are both made of waiting, so other work on the machine does
not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from signfuse_dist.answer import answer
from signfuse_dist.batch import SignBatch
from signfuse_dist.cli import add_options, from_options, parse, whole_numbers
from signfuse_dist.data.loader import Each, batches
from signfuse_dist.skeleton import NUM_JOINTS


@dataclass(frozen=True)
class ReadAheadBench:
    """What is measured."""

    accumulation: tuple[int, ...] = (1, 4, 8)
    loading: float = field(
        default=1.1,
        metadata={"help": "seconds of loading a batch over those of computing it (default: 1.1)"},
    )
    milliseconds: float = field(
        default=20.0, metadata={"help": "of computing a batch (default: %(default)s)"}
    )
    batches: int = field(default=96, metadata={"help": "of a run (default: %(default)s)"})
    rounds: int = field(default=3, metadata={"help": "of each way (default: %(default)s)"})


class _Slow:
    """Batches each of which takes as long to load, two at a time, as is asked for."""

    def __init__(self, bench: ReadAheadBench) -> None:
        self._bench = bench

    def __len__(self) -> int:
        return self._bench.batches

    def load(self, item: int, each: Each, pin_memory: bool) -> SignBatch:
        """Wait, and return a batch of one clip of one frame."""
        # Two are made at once, so each may take twice the time.
        time.sleep(2 * self._bench.loading * self._bench.milliseconds / 1000)
        return SignBatch(
            ids=("",),
            frames=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            pose=torch.zeros(1, 1, NUM_JOINTS, 2),
            joint_mask=torch.ones(1, 1, NUM_JOINTS, dtype=torch.bool),
            frame_lengths=torch.ones(1, dtype=torch.long),
            weight=torch.ones(1),
            tokens=None,
            text_lengths=None,
        )


def bench_read_ahead(bench: ReadAheadBench) -> str:
    """Measure and return the table."""
    ways: dict[str, Callable[[int], int]] = {
        "as far as a step takes": lambda n: n,
        "2": lambda n: 1,
    }
    lines = [
        f"loading at {bench.loading} of computing's pace, {bench.milliseconds:.0f} ms a batch, two "
        f"made at once; share of the pace of computing alone, median of {bench.rounds} rounds "
        "(least to most)",
        f"{'accumulation':14}"
        + "".join(f"{'ahead: ' + way:>32}" for way in ways)
        + f"{'ratio':>8}",
    ]
    for accumulation in bench.accumulation:
        shares: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(bench.rounds):
            for way, window in ways.items():
                shares[way].append(_share(bench, accumulation, window(accumulation)))
        cells = [
            f"{statistics.median(s):.3f} ({min(s):.3f} to {max(s):.3f})" for s in shares.values()
        ]
        ahead, two = (statistics.median(s) for s in shares.values())
        lines.append(
            f"{accumulation:<14}" + "".join(f"{cell:>32}" for cell in cells) + f"{ahead / two:8.2f}"
        )
    return "\n".join(lines)


def _share(bench: ReadAheadBench, accumulation: int, window: int) -> float:
    """Return the time of computing alone over that of a run, whose first window is left out."""
    seconds = bench.milliseconds / 1000
    loaded = batches(_Slow(bench), 2, pin_memory=False, window=window)
    list(islice(loaded, accumulation))
    began, computed = time.perf_counter(), 0.0
    while step := list(islice(loaded, accumulation)):
        time.sleep(seconds * len(step))
        computed += seconds * len(step)
    return computed / (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/read_ahead.py",
        description="Take steps of several micro batches, whose loading and computing are waiting "
        "of a known length, with as many batches ahead as a step takes and with two, in turn. "
        "Takes half a minute.",
        epilog="Example: python benchmarks/read_ahead.py --accumulation 4. Figures: "
        "docs/benchmarks.md.",
    )
    command.add_argument(
        "--accumulation",
        type=whole_numbers,
        default=(1, 4, 8),
        help="micro batches of a step, with commas (default: 1,4,8)",
    )
    add_options(command, ReadAheadBench)
    command.set_defaults(run=_read_ahead)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _read_ahead(options: argparse.Namespace) -> int:
    print(
        bench_read_ahead(from_options(ReadAheadBench, options, accumulation=options.accumulation))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
