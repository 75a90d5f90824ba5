"""What waiting and padding leave of a step, simulated: clips as drawn, and put together by length.

Lengths are those of a packed split, or drawn like How2Sign's (6.6 s on average, 0.11 s to 45.8 s,
with a long tail). Nothing is computed: a micro batch takes the time of the process that has most in
it, a picture three times what all else of a frame takes, and all else as many places a clip as the
longest of the micro batch has. The plan is the one that training follows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.answer import answer
from signfuse_dist.arrangement import AS_DRAWN, PICTURE, Arrangement
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.split import read_split
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError
from signfuse_dist.plan import ClipFrames, MicroBatches, Plan, make_plan


@dataclass(frozen=True)
class BalanceBench:
    """Whose clips are put together, and on how many processes."""

    shards: str | None = field(
        default=None,
        metadata={"help": "folder of a packed split; left out: lengths like How2Sign's"},
    )
    fps: float = field(
        default=24.0, metadata={"help": "of lengths that are drawn (default: %(default)s)"}
    )
    clips: int = field(
        default=31_000, metadata={"help": "of lengths that are drawn (default: %(default)s)"}
    )
    max_frames: int = field(default=512, metadata={"help": "of a clip (default: %(default)s)"})
    processes: tuple[int, ...] = field(
        default=(4, 16, 64, 256), metadata={"help": "numbers of processes (default: 4 16 64 256)"}
    )
    micro: tuple[int, ...] = field(
        default=(1, 2, 4, 8), metadata={"help": "clips of a process (default: 1 2 4 8)"}
    )
    accumulation: int = field(
        default=1, metadata={"help": "micro batches of a step (default: %(default)s)"}
    )
    bucket: int = field(default=64, metadata={"help": "train.bucket (default: %(default)s)"})
    steps: int = field(
        default=64, metadata={"help": "that are looked at, at most (default: %(default)s)"}
    )

    def __post_init__(self) -> None:
        numbers = (*self.processes, *self.micro, self.accumulation, self.bucket, self.steps)
        if min(*numbers, self.clips, self.max_frames) < 1 or self.fps <= 0:
            raise UserError("every number must be at least 1")

    def frames(self) -> ClipFrames:
        """Return the frames of the clips; raise UserError where the split cannot be read."""
        if self.shards is None:
            seconds = np.random.default_rng(1).lognormal(np.log(6.6) - 0.26, 0.72, self.clips)
            lengths = (self.fps * np.clip(seconds, 0.11, 45.8)).astype(np.int32)
        else:
            folder = open_folder(self.shards)
            lengths = read_split(folder, load_manifest(folder), None).lengths
        return ClipFrames(np.maximum(lengths, 1), self.max_frames, AugmentConfig(), seed=0)


def bench_balance(asked: BalanceBench) -> str:
    """Return a Markdown table: a row for each number of processes and clips of one."""
    frames = asked.frames()
    ways = AS_DRAWN, Arrangement(by_length=True), Arrangement(by_length=True, bucket=asked.bucket)
    lines = [
        f"{len(frames.lengths):,} clips of {frames.counts(0, _all(frames)).mean():.0f} frames on "
        f"average, {asked.accumulation} micro batches a step",
        "",
        f"| processes x clips | as drawn | by length | bucket of {asked.bucket} | faster |",
        "|---|---|---|---|---|",
    ]
    for micro in asked.micro:
        for world in asked.processes:
            plan = _plan(len(frames.lengths), micro, world, asked.accumulation)
            full = plan.num_clips // plan.global_batch_size
            if not full:
                lines.append(f"| {world} x {micro} | fewer clips than a step | | | |")
                continue
            kept = [
                _kept(
                    MicroBatches(plan, 0, frames.counts, 0, 0, how), frames, min(full, asked.steps)
                )
                for how in ways
            ]
            shown = " | ".join(f"{share:.2f}" for share in kept)
            faster = " / ".join(f"{share / kept[0]:.2f}" for share in kept[1:])
            lines.append(f"| {world} x {micro} | {shown} | {faster} |")
    return "\n".join(lines)


def _all(frames: ClipFrames) -> NDArray[np.int64]:
    return np.arange(len(frames.lengths))


def _plan(num_clips: int, micro: int, world: int, accumulation: int) -> Plan:
    stage = StageConfig(name="alignment", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    train = TrainConfig(
        micro_batch_size=micro,
        global_batch_size=micro * world * accumulation,
        precision="bf16",
        gradient_clipping=1.0,
    )
    return make_plan(num_clips, stage, train, world)


def _kept(order: MicroBatches, frames: ClipFrames, steps: int) -> float:
    """Return the share of the time of some steps that is neither waiting nor padding."""
    needed = computed = 0
    for step in range(steps):
        clips, _ = order.of_all(step)
        each = frames.counts(0, clips.reshape(-1)).reshape(clips.shape)
        places = each.max(axis=2) * each.shape[2]
        needed += (PICTURE + 1) * int(each.sum())
        slowest = (PICTURE * each.sum(axis=2) + places).max(axis=1)
        computed += int(slowest.sum()) * each.shape[1]
    return needed / computed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation that the command line describes."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/balance.py",
        description="Simulate what waiting for the fullest process and padding leave of a step, "
        "for clips as drawn, sorted by length into a step's micro batches (train.arrangement), and "
        "in buckets besides (train.bucket). `faster` is the throughput beside that of clips as "
        "drawn.",
        epilog="Example: python benchmarks/balance.py --accumulation 8 --processes 4 8. Figures: "
        "docs/benchmarks.md.",
    )
    add_options(command, BalanceBench)
    command.set_defaults(
        run=lambda options: print(bench_balance(from_options(BalanceBench, options)))
    )
    options = parse(command, arguments)
    return answer(lambda: options.run(options) or 0)


if __name__ == "__main__":
    sys.exit(main())
