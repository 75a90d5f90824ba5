"""How much the loader costs beyond decoding: the same JPEGs in a bare loop are the measure.

Everything reads the same clips of a packed split, whole. The ways take turns for several rounds and
the best round of each counts, so that other work on the machine weighs least. What runs in this
thread is measured in CPU seconds, what runs beside it in wall seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise

import numpy as np
import simplejpeg
import webdataset
from tqdm import tqdm

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.loader import ClipBatches, batches
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.split import Split, read_split
from signfuse_dist.data.storage import is_local, open_folder, read_file
from signfuse_dist.errors import UserError
from signfuse_dist.plan import ClipFrames, MicroBatch

_SHUFFLED = 0  # seed of the order: clips are read from all over the shards


@dataclass(frozen=True)
class LoaderBench:
    """What is read, and how."""

    folder: str
    """A packed split on this machine."""
    batch_size: int = field(default=4, metadata={"help": "clips (default: %(default)s)"})
    rounds: int = field(
        default=5, metadata={"help": "of each way, the best of which counts (default: %(default)s)"}
    )


@dataclass(frozen=True)
class Rate:
    """Frames a second of one way to read, on one core."""

    way: str
    frames_per_second: float
    ratio: float
    """To the bare loop."""

    def __str__(self) -> str:
        return f"{self.way:58s} {self.frames_per_second:9,.0f} {self.ratio:7.2f}"


def bench_loader(bench: LoaderBench) -> str:
    """Measure a packed split; return a table of frames a second a core and ratios.

    Raises UserError when there is no such split, or too little in it to fill two batches.
    """
    split, size = _open(bench.folder), bench.batch_size
    order = np.random.default_rng(_SHUFFLED).permutation(len(split)).tolist()
    places = [order[i : i + size] for i in range(0, len(order), size)]
    if len(places) < 2:
        raise UserError(f"{bench.folder}: {len(split)} clips do not fill two batches of {size}")
    dataset = _dataset(split, places)
    jpegs = list(_jpegs(split))
    ways: dict[str, Callable[[], float]] = {
        "bare loop: simplejpeg on bytes in memory": lambda: _bare(jpegs),
        "loader in this process": lambda: _in_process(dataset),
        "stock webdataset, JPEGs decoded with simplejpeg": lambda: _stock(split),
        "loader in one thread beside this one (wall)": lambda: _in_thread(dataset),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in tqdm(range(bench.rounds), desc="rounds", unit="round"):
        for way, measure in ways.items():
            best[way] = max(best[way], measure())
    bare = next(iter(best.values()))
    lines = [str(Rate(way, rate, rate / bare)) for way, rate in best.items()]
    head = f"{len(split)} clips, {len(jpegs):,} frames of {split.frame_size} pixels, "
    columns = f"{'one core':58s} {'frames/s':>9s} {'ratio':>7s}"
    return "\n".join([f"{head}{size} clips a batch, best of {bench.rounds}", columns, *lines])


def _open(location: str) -> Split:
    folder = open_folder(location)
    if not is_local(folder):
        raise UserError(f"{location}: give a folder on this machine; a network would be measured")
    return read_split(folder, load_manifest(folder), cache=None)


def _dataset(split: Split, places: list[list[int]]) -> ClipBatches:
    longest = int(split.lengths.max())
    frames = ClipFrames(split.lengths, longest, AugmentConfig(), seed=0)
    return ClipBatches(split, [MicroBatch(clips, 0) for clips in places], frames, encode=None)


def _jpegs(split: Split) -> Iterator[bytes]:
    """Yield every JPEG of the split, as the bare loop is given them."""
    tars = [read_file(split.folder / shard.name) for shard in split.manifest.shards]
    for place in range(len(split)):
        tar, members = tars[split.columns.shards[place]], split.members_of(place)
        start, size = members["offsets.npy"]
        ends = np.load(BytesIO(tar[start : start + size]), allow_pickle=False)
        start = members["jpegs"][0]
        yield from (tar[start + a : start + b] for a, b in pairwise(ends))


def _bare(jpegs: list[bytes]) -> float:
    began = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg)
    return len(jpegs) / (time.process_time() - began)


def _in_process(dataset: ClipBatches) -> float:
    began, frames = time.process_time(), 0
    for batch in batches(dataset, 0, pin_memory=False):
        frames += len(batch.frames)
    return frames / (time.process_time() - began)


def _in_thread(dataset: ClipBatches) -> float:
    began, frames = time.perf_counter(), 0
    for batch in batches(dataset, 1, pin_memory=False):
        frames += len(batch.frames)
    return frames / (time.perf_counter() - began)


def _stock(split: Split) -> float:
    urls = [str(split.folder / shard.name) for shard in split.manifest.shards]
    began, frames = time.process_time(), 0
    for clip in webdataset.WebDataset(urls, shardshuffle=False):
        blob = memoryview(clip["jpegs"])
        ends = np.load(BytesIO(clip["offsets.npy"]), allow_pickle=False)
        for start, end in pairwise(ends):
            simplejpeg.decode_jpeg(blob[start:end])
            frames += 1
    return frames / (time.process_time() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/loader.py",
        description="Read every clip of a packed split in four ways: bare JPEGs, the loader in "
        "this thread and in another one, and stock webdataset. Wants an idle machine, and memory "
        "for all JPEGs of the split. Printed are frames a second on one core, and their ratio to "
        "the bare loop's.",
        epilog="Example: python benchmarks/loader.py shards/synthetic/train. Figures: "
        "docs/benchmarks.md.",
    )
    command.add_argument("folder", help="a split's folder (with manifest.json)")
    add_options(command, LoaderBench)
    command.set_defaults(run=_loader)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _loader(options: argparse.Namespace) -> int:
    print(bench_loader(from_options(LoaderBench, options, folder=options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
