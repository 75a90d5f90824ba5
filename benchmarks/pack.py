"""How fast packing is: against a bare loop, on two processes, and beside the pose model.

The bare loop does what cannot be left out, PyAV's decoding, one scaling to the stored square and
one JPEG a frame, on one thread and with the packer's own settings; it keeps nothing. Packing adds
the choice of frames by time, letterboxing, checks, members, tars, checksums and syncing.

Other work on the machine makes wall time noisy, so the runs that are compared alternate, each
figure is the best of several, and processor time stands beside wall time.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.cli.data import add_pose_model
from signfuse_dist.corpora import ClipRow, read_corpus
from signfuse_dist.data.finished import ShardTask
from signfuse_dist.data.joints import NoJoints, PoseExtractor
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.mediapipe import choose_extractor
from signfuse_dist.data.pack import ClipEncoder
from signfuse_dist.data.pack_workers import Division, ShardResult, make_shards
from signfuse_dist.data.shard import read_clip
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT
from signfuse_dist.synthetic.corpus import DEFAULT_SEED, DEFAULT_SIZES, plan_corpus, render_clip

WIDTH, HEIGHT, FPS = 1280, 720, 25
_REPEATS = 2  # of the sentence
_NOISE = 6.0  # standard deviation in grey levels: without noise, decoding would cost too little
_NUM_NOISES = 7  # different fields of noise, shown in turn


def write_drawn_video(path: Path) -> Path:
    """Write an H.264 video of 720 lines and two seconds, always the same."""
    planned = plan_corpus(DEFAULT_SEED, DEFAULT_SIZES)[0]
    clip = render_clip(planned.sentence, planned.signer, planned.seed, frame_size=HEIGHT)
    generator = np.random.default_rng(DEFAULT_SEED)
    noises = generator.normal(0.0, _NOISE, (_NUM_NOISES, HEIGHT, WIDTH, 1)).astype(np.int16)
    left = (WIDTH - HEIGHT) // 2
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for number, frame in enumerate(np.concatenate([clip.frames] * _REPEATS)):
            picture = np.pad(frame, ((0, 0), (left, left), (0, 0)), mode="edge")
            pixels = (picture + noises[number % _NUM_NOISES]).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


RATIO_GOAL, SCALING_GOAL, POSE_SHARE_GOAL = 0.9, 1.8, 0.9
MEMORY_GOAL = 600  # MB


@dataclass(frozen=True)
class Run:
    """One run: its frames, and its seconds of wall and of processor time."""

    frames: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Rates:
    """Frames a second of wall and of processor time, each the best of several runs."""

    wall: float
    cpu: float

    @classmethod
    def best(cls, runs: Sequence[Run]) -> Rates:
        """Return the best rates of some runs."""
        return cls(max(r.frames / r.wall for r in runs), max(r.frames / r.cpu for r in runs))


@dataclass(frozen=True)
class Workers:
    """The same work by one worker process and by two."""

    one: Rates
    two: Rates

    @property
    def scaling(self) -> float:
        """Return two workers' frames a second over one's."""
        return self.two.wall / self.one.wall

    @property
    def cpu_scaling(self) -> float:
        """Return the same as it would be with a free core for each, from processor time."""
        return 2 * self.two.cpu / self.one.cpu


@dataclass(frozen=True)
class PoseFigures:
    """Packing with pose."""

    share: float
    """Share of the time of packing that is spent inside MediaPipe."""
    share_found: float
    """Share of the joints that it found: without a person it would do half the work."""
    workers: Workers
    share_started: float = 0.0
    """Share of the whole time of one worker process, its start and imports included."""
    worker_bytes: float = 0.0
    """Resident memory of the largest worker process, at its peak."""


@dataclass(frozen=True)
class PackFigures:
    """What was measured; ``str()`` of it is the table."""

    title: str
    bare: Rates
    packing: Rates
    workers: Workers
    pose: PoseFigures | None

    @property
    def ratio(self) -> float:
        """Return packing's frames a processor second over the bare loop's."""
        return self.packing.cpu / self.bare.cpu

    def __str__(self) -> str:
        lines = [
            self.title,
            f"{'frames a second of':38}{'wall':>8}{'processor':>12}",
            _rates("bare loop", self.bare),
            _rates("packing without pose, this process", self.packing),
            *_worker_rates(self.workers),
            *(_worker_rates(self.pose.workers, " with pose") if self.pose else ()),
            f"{'ratios':38}",
            _ratio("packing to bare loop, processor", self.ratio, RATIO_GOAL),
            _ratio("  the same, wall", self.packing.wall / self.bare.wall),
            *_scalings(self.workers),
        ]
        if self.pose:
            found = f"   ({self.pose.share_found:.0%} of the joints found)"
            lines += _scalings(self.pose.workers, " with pose")
            lines.append(_ratio("time inside MediaPipe", self.pose.share, POSE_SHARE_GOAL) + found)
            started = self.pose.share_started
            lines.append(_ratio("  the same, a worker with its start", started, POSE_SHARE_GOAL))
            megabytes = self.pose.worker_bytes / 1e6
            lines.append(
                f"  {'most memory of a worker, MB':36}{megabytes:8.0f}   goal {MEMORY_GOAL}"
            )
        return "\n".join(lines)


def _rates(name: str, rates: Rates) -> str:
    return f"  {name:36}{rates.wall:8.1f}{rates.cpu:12.1f}"


def _worker_rates(workers: Workers, which: str = "") -> list[str]:
    return [
        _rates(f"one worker{which}", workers.one),
        _rates(f"two workers{which}", workers.two),
    ]


def _scalings(workers: Workers, which: str = "") -> list[str]:
    return [
        _ratio(f"two workers to one{which}, wall", workers.scaling, SCALING_GOAL),
        _ratio("  the same, from processor time", workers.cpu_scaling),
    ]


def _ratio(name: str, value: float, goal: float | None = None) -> str:
    line = f"  {name:36}{value:8.3f}"
    if goal is None:
        return line
    return f"{line}   goal {goal}: {'met' if value >= goal else 'missed'}"


SPLIT = "train"
SETTINGS = PackConfig()


@dataclass(frozen=True)
class PackBench:
    """What is measured, and how long; a run holds at least so many frames or seconds."""

    root: Path | None = field(
        default=None,
        metadata={
            "metavar": "TABLE",
            "help": "clips to measure with, a TSV with rows of split train (default: one drawn "
            "video)",
        },
    )
    """In the form of shards/table.md."""
    pose: bool = field(default=False, metadata={"help": "measure with MediaPipe as well"})
    pose_model: Path | None = None
    frames: int = 600
    """Of a run in one process, with or without pose."""
    repeats: int = 8
    worker_seconds: float = 20.0
    """Of a run of one worker process: enough that its start counts for little."""
    worker_repeats: int = 3
    pose_worker_seconds: float = 45.0
    """The same with pose: MediaPipe takes longer to start."""
    pose_worker_repeats: int = 2


@dataclass(frozen=True)
class _Packed:
    run: Run
    results: list[ShardResult]
    out: Path

    @property
    def pose_share(self) -> float:
        """Share of the wall time that is spent inside the pose model."""
        return sum(result.pose_seconds for result in self.results) / self.run.wall


def bench_pack(bench: PackBench) -> PackFigures:
    """Measure packing. Raises :class:`UserError` when there is nothing to measure it with."""
    if bench.pose and bench.root is None:
        raise UserError(
            "--pose needs --root: a drawn video shows nobody whom MediaPipe finds, and its share "
            "of the time would say nothing"
        )
    with tempfile.TemporaryDirectory(prefix="signfuse-bench-") as folder:
        measuring = _Measuring(bench, Path(folder))
        bare, packing = measuring.compare_with_bare_loop()
        frames = int(packing.wall * bench.worker_seconds)
        workers, _ = measuring.compare_workers(NoJoints(), frames, bench.worker_repeats)
        pose = measuring.measure_pose() if bench.pose else None
        return PackFigures(measuring.title(), bare, packing, workers, pose)


class _Measuring:
    """The clips to measure with, and a new folder for each run."""

    def __init__(self, bench: PackBench, folder: Path) -> None:
        self._bench, self._folder = bench, folder
        self._rows = _rows(bench.root, folder)
        self._counts = {row.id: sum(1 for _ in _bare_frames(row)) for row in self._rows}
        self._runs = count()

    def title(self) -> str:
        """Say what was measured with."""
        source = self._bench.root or "one drawn video, 1280x720"
        return (
            f"{source}: {len(self._rows)} clips, {sum(self._counts.values())} frames, stored at "
            f"{SETTINGS.frame_size} pixels, JPEG quality {SETTINGS.jpeg_quality}"
        )

    def compare_with_bare_loop(self) -> tuple[Rates, Rates]:
        """Return the rates of the bare loop and of packing without pose, in this process."""
        rows = self._clips(self._bench.frames)
        runs: list[tuple[Run, Run]] = []
        for _ in range(self._bench.repeats):
            bare = _timed(lambda: bare_loop(rows), time.process_time)
            runs.append((bare, self._pack(rows, NoJoints(), workers=0, shards=1).run))
        return Rates.best([bare for bare, _ in runs]), Rates.best([packed for _, packed in runs])

    def compare_workers(
        self, extractor: PoseExtractor, frames: int, repeats: int
    ) -> tuple[Workers, float]:
        """Return the rates of one worker process and of two, over the same clips.

        And the share of one worker's whole time that is spent inside the pose model.
        """
        rows = self._clips(frames)
        shards = min(len(rows), 24)  # so many that none is long enough to be waited for
        packed = [
            [self._pack(rows, extractor, workers, shards) for workers in (1, 2)]
            for _ in range(repeats)
        ]
        one, two = (Rates.best([each[i].run for each in packed]) for i in (0, 1))
        return Workers(one, two), max(alone.pose_share for alone, _ in packed)

    def measure_pose(self) -> PoseFigures:
        """Return where the time goes with pose, and what two workers make of it."""
        extractor = choose_extractor(self._bench.pose_model)
        rows = self._clips(self._bench.frames)
        packed = self._pack(rows, extractor, workers=0, shards=1)
        frames = int(packed.run.frames / packed.run.wall * self._bench.pose_worker_seconds)
        fresh = choose_extractor(self._bench.pose_model)
        repeats = self._bench.pose_worker_repeats
        workers, started = self.compare_workers(fresh, frames, repeats)
        most = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return PoseFigures(packed.pose_share, _share_found(packed), workers, started, most)

    def _clips(self, frames: int) -> list[ClipRow]:
        """Return clips, repeated or left out, of at least so many frames together."""
        rows, num_frames = [], 0
        for number, row in enumerate(cycle(self._rows)):
            rows.append(replace(row, id=f"{number}"))
            num_frames += self._counts[row.id]
            if num_frames >= frames:
                return rows
        raise UserError("no frames to measure with")

    def _pack(
        self, rows: Sequence[ClipRow], extractor: PoseExtractor, workers: int, shards: int
    ) -> _Packed:
        out = self._folder / f"run-{next(self._runs)}"
        out.mkdir()
        tasks = [ShardTask(f"shard-{i:06d}.tar", tuple(rows[i::shards])) for i in range(shards)]
        encoder = ClipEncoder(_packing(extractor), extractor)
        results: list[ShardResult] = []

        def run() -> int:
            results.extend(make_shards(tasks, out, encoder, Division(workers)))
            return sum(r.index.entry().num_frames for r in results)

        timed = _timed(run, _children_time if workers else time.process_time)
        dropped = [row for result in results for row in result.index.dropped]
        if dropped:
            raise UserError(f"a clip cannot be packed, so nothing is measured: {dropped[0].reason}")
        return _Packed(timed, results, out)


def bare_loop(rows: Sequence[ClipRow]) -> int:
    """Decode, scale and compress clips, keep nothing, and return the number of frames."""
    size, frames = SETTINGS.frame_size, 0
    scaler = VideoReformatter()
    for row in rows:
        for frame in _bare_frames(row):
            scaled = scaler.reformat(
                frame, size, size, "rgb24", interpolation=Interpolation.AREA, threads=1
            )
            simplejpeg.encode_jpeg(
                scaled.to_ndarray(), SETTINGS.jpeg_quality, "RGB", colorsubsampling="420"
            )
            frames += 1
    return frames


def _bare_frames(row: ClipRow) -> Iterator[VideoFrame]:
    """Yield the frames of a clip as PyAV gives them, sought where the clip begins later."""
    start = row.start or 0.0
    with av.open(str(row.video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if start and stream.time_base:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if row.end is not None and frame.time is not None and frame.time >= row.end:
                return
            if frame.time is None or frame.time >= start:
                yield frame


def _rows(table: Path | None, folder: Path) -> list[ClipRow]:
    if table is None:
        video = write_drawn_video(folder / "drawn.mp4")
        return [
            ClipRow(2, "drawn", video, video.name, "drawn", None, None, None, None, SPLIT, None)
        ]
    rows = [row for row in read_corpus("table", table, SPLIT).rows if row.video.is_file()]
    if not rows:
        raise UserError(f"{table}: no row of split {SPLIT!r} names a video file")
    random.Random(0).shuffle(rows)  # a run may not reach the end of the table
    return rows


def _packing(extractor: PoseExtractor) -> Packing:
    return Packing(
        "bench", "", SPLIT, JOINT_LAYOUT, extractor.name, extractor.version, SETTINGS, "0" * 64
    )


def _timed(run: Callable[[], int], processor_time: Callable[[], float]) -> Run:
    """Time what returns its number of frames."""
    wall, cpu = time.perf_counter(), processor_time()
    frames = run()
    return Run(frames, time.perf_counter() - wall, processor_time() - cpu)


def _children_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _share_found(packed: _Packed) -> float:
    masks = [
        read_clip(packed.out, result.index.shard, sample.members).mask
        for result in packed.results
        for sample in result.index.samples
    ]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/pack.py",
        description="Compare packing with a bare loop of decoding, resizing and JPEG encoding, two "
        "workers with one, and with --pose the time inside MediaPipe with all time. Takes about "
        "two minutes, with pose about six, and wants an idle machine. Printed are frames a second "
        "of wall and of processor time, and the ratios with their goals.",
        epilog="Example: python benchmarks/pack.py --root clips.tsv --pose. Figures: "
        "docs/benchmarks.md.",
    )
    add_options(command, PackBench)
    add_pose_model(command)
    command.set_defaults(run=_pack)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _pack(options: argparse.Namespace) -> int:
    print(bench_pack(from_options(PackBench, options, pose_model=options.pose_model)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
