"""What a process needs to open a packed split and plan: from the columns, and from the indexes.

The split is written into a temporary folder: indexes as `signfuse pack` writes them, beside tars of
nothing but a size. Each way runs in fresh processes, in turn, and the least of each counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from signfuse_dist.answer import answer
from signfuse_dist.arrangement import Arrangement
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.corpora import key_of
from signfuse_dist.data.columns import COLUMNS_NAME, write_columns
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    MEMBERS,
    Manifest,
    PackConfig,
    Packing,
    SampleEntry,
    ShardEntry,
    ShardIndex,
    index_name,
)
from signfuse_dist.data.manifest_files import index_bytes, load_index, load_manifest, manifest_bytes
from signfuse_dist.data.split import read_split
from signfuse_dist.errors import UserError
from signfuse_dist.plan import ClipFrames, MicroBatches, make_plan
from signfuse_dist.skeleton import JOINT_LAYOUT

_CLIPS_A_SHARD, _MEMBER = 128, 40_000  # bytes of a member
_FRAMES = 120
_EPOCHS = 8  # in which the fullest micro batch is looked for, as training does
_DIGEST = "0123456789abcdef" * 4


@dataclass(frozen=True)
class OpeningBench:
    """What is opened."""

    clips: int = field(default=100_000, metadata={"help": "of the split (default: %(default)s)"})
    rounds: int = field(default=3, metadata={"help": "of each way (default: %(default)s)"})

    columns_alone: bool = field(
        default=False, metadata={"help": "write no indexes, and do not open from them"}
    )

    def __post_init__(self) -> None:
        if self.clips < 1 or self.rounds < 1:
            raise UserError("--clips and --rounds: at least 1 is needed")


class Opened(NamedTuple):
    """What a process needed to open a split, and to be ready for its first batch."""

    cpu: float
    """Processor seconds until it was open."""
    megabytes: float
    """By which the process had grown then, at its peak."""
    ready_cpu: float
    """Processor seconds until there was a plan too, with its fullest and first micro batch."""
    ready_megabytes: float


def bench_opening(bench: OpeningBench) -> str:
    """Write the split, open it both ways, and return the figures as text."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder, bench.clips, bench.columns_alone)
        columns = folder / COLUMNS_NAME
        size = columns.stat().st_size / 1e6
        ways: dict[str, list[Opened]] = {"columns": [], "indexes": []}
        for _ in range(bench.rounds):
            ways["columns"].append(_open_elsewhere(folder))
            if bench.columns_alone:
                continue
            hidden = columns.rename(folder / "hidden")
            ways["indexes"].append(_open_elsewhere(folder))
            hidden.rename(columns)
    best = {
        way: Opened(*map(min, zip(*opened, strict=True))) for way, opened in ways.items() if opened
    }
    lines = [
        f"from the {way}: {of.cpu:6.2f} CPU s, {of.megabytes:5.0f} MB more; "
        f"with the plan {of.ready_cpu:6.2f} s, {of.ready_megabytes:5.0f} MB"
        for way, of in best.items()
    ]
    if "indexes" in best:
        lines.append(f"{best['indexes'].cpu / best['columns'].cpu:.1f} times")
    return "\n".join([f"{bench.clips:,} clips, columns of {size:.0f} MB", *lines])


def open_here(folder: Path) -> Opened:
    """Open a split and return what it took this process."""
    before = _peak()
    began = time.process_time()
    split = read_split(folder, load_manifest(folder), None)
    cpu, megabytes = time.process_time() - began, _peak() - before
    assert len(split) == split.manifest.num_samples
    stage = StageConfig(name="alignment", epochs=_EPOCHS, learning_rate=1e-3, warmup_epochs=1)
    train = TrainConfig(
        micro_batch_size=4, global_batch_size=128, precision="bf16", gradient_clipping=1.0
    )
    frames = ClipFrames(split.lengths, 256, AugmentConfig(), seed=0)
    plan = make_plan(len(split), stage, train, world_size=8)
    order = MicroBatches(plan, 0, frames.counts, 0, 0, Arrangement(by_length=True))
    assert order[order.fullest(_EPOCHS)].clips
    assert order[0].clips
    return Opened(cpu, megabytes, time.process_time() - began, _peak() - before)


def _peak() -> float:
    """Return the most that this process has held, in MB: what its starter held is not counted."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


def _open_elsewhere(folder: Path) -> Opened:
    words = [sys.executable, __file__, "--only", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Opened(*json.loads(done.stdout))


def _write(folder: Path, clips: int, columns_alone: bool) -> None:
    packing = Packing(
        "table", "root", "train", JOINT_LAYOUT, "none", "1", PackConfig(), rows_sha256=_DIGEST
    )
    entries: list[ShardEntry] = []
    for first in range(0, clips, _CLIPS_A_SHARD):
        count = min(_CLIPS_A_SHARD, clips - first)
        name = f"shard-{len(entries):06d}.tar"
        size = count * len(MEMBERS) * _MEMBER
        with (folder / name).open("wb") as tar:
            tar.truncate(size)
        entries.append(ShardEntry(name, _DIGEST, size, count, count * _FRAMES))
    indexes = (_index(entry, number, packing) for number, entry in enumerate(entries))
    manifest = Manifest(
        packing, tuple(entries), clips, clips, _FRAMES * clips, 0, 0, signfuse_version="0"
    )
    if not columns_alone:
        for index in indexes:
            (folder / index_name(index.shard)).write_bytes(index_bytes(index))
        indexes = (load_index(folder, entry) for entry in entries)
    write_columns(folder, manifest, indexes)
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))


def _index(entry: ShardEntry, number: int, packing: Packing) -> ShardIndex:
    first = number * _CLIPS_A_SHARD
    samples = tuple(_sample(first + place, place) for place in range(entry.num_samples))
    return ShardIndex(entry.name, entry.sha256, entry.size, packing, samples, ())


def _sample(number: int, place: int) -> SampleEntry:
    name, start = f"clip_{number:08d}", place * len(MEMBERS) * _MEMBER
    members = {m: (start + i * _MEMBER, _MEMBER) for i, m in enumerate(MEMBERS)}
    return SampleEntry(
        key=key_of(name),
        id=name,
        num_frames=_FRAMES,
        flags=(),
        members=members,
        failed_frames=0,
        text=f"this is sentence number {number} of a corpus that is large",
        signer=f"signer {number % 40}",
        found_frames=_FRAMES,
        pictures_sha256=_DIGEST,
        joints_sha256=_DIGEST,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement that the command line describes."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/opening.py",
        description="Write the indexes of a large split and open it from its columns and from its "
        "indexes. Printed are processor seconds and memory of a fresh process.",
        epilog="Example: python benchmarks/opening.py --clips 1000000. Figures: "
        "docs/benchmarks.md.",
    )
    command.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    add_options(command, OpeningBench)
    command.set_defaults(run=_opening)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _opening(options: argparse.Namespace) -> int:
    if options.only is not None:
        print(json.dumps(open_here(options.only)))
        return 0
    print(bench_opening(from_options(OpeningBench, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
