"""How fast packing is: against a bare loop, on two processes, and beside the pose model.

The bare loop does what cannot be left out, PyAV's decoding, one scaling to the stored square and
one JPEG a frame, on one thread and with the packer's own settings; it keeps nothing. Packing adds
the choice of frames by time, letterboxing, checks, members, tars, checksums and syncing.

Other work on the machine makes wall time noisy, so the runs that are compared alternate, each
figure is the best of several, and processor time stands beside wall time.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path

import av
import simplejpeg
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from signfuse_dist.bench.drawn_video import write_drawn_video
from signfuse_dist.bench.pack_figures import PackFigures, PoseFigures, Rates, Run, Workers
from signfuse_dist.data.corpora import Row, read_corpus
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.pack import ClipEncoder
from signfuse_dist.data.pose import NoJoints, PoseExtractor
from signfuse_dist.data.pose_mediapipe import choose_extractor
from signfuse_dist.data.shard import read_clip
from signfuse_dist.data.work import Division, ShardResult, ShardTask, make_shards
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT

SPLIT = "train"
SETTINGS = PackConfig()


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long; a run holds at least so many frames or seconds."""

    table: Path | None
    """Clips in the form of shards/table.md, of split ``train``; None draws one."""
    pose: bool = False
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


def bench_pack(config: BenchConfig) -> PackFigures:
    """Measure packing. Raises :class:`UserError` when there is nothing to measure it with."""
    if config.pose and config.table is None:
        raise UserError(
            "--pose needs --root: a drawn video shows nobody whom MediaPipe finds, and its share "
            "of the time would say nothing"
        )
    with tempfile.TemporaryDirectory(prefix="signfuse-bench-") as folder:
        bench = _Bench(config, Path(folder))
        bare, packing = bench.compare_with_bare_loop()
        frames = int(packing.wall * config.worker_seconds)
        workers = bench.compare_workers(NoJoints(), frames, config.worker_repeats)
        pose = bench.measure_pose() if config.pose else None
        return PackFigures(bench.title(), bare, packing, workers, pose)


class _Bench:
    """The clips to measure with, and a new folder for each run."""

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._rows = _rows(config.table, folder)
        self._counts = {row.id: sum(1 for _ in _bare_frames(row)) for row in self._rows}
        self._runs = count()

    def title(self) -> str:
        """Say what was measured with."""
        source = self._config.table or "one drawn video, 1280x720"
        return (
            f"{source}: {len(self._rows)} clips, {sum(self._counts.values())} frames, stored at "
            f"{SETTINGS.frame_size} pixels, JPEG quality {SETTINGS.jpeg_quality}"
        )

    def compare_with_bare_loop(self) -> tuple[Rates, Rates]:
        """Return the rates of the bare loop and of packing without pose, in this process."""
        rows = self._clips(self._config.frames)
        runs: list[tuple[Run, Run]] = []
        for _ in range(self._config.repeats):
            bare = _timed(lambda: bare_loop(rows), time.process_time)
            runs.append((bare, self._pack(rows, NoJoints(), workers=0, shards=1).run))
        return Rates.best([bare for bare, _ in runs]), Rates.best([packed for _, packed in runs])

    def compare_workers(self, extractor: PoseExtractor, frames: int, repeats: int) -> Workers:
        """Return the rates of one worker process and of two, over the same clips."""
        rows = self._clips(frames)
        shards = min(len(rows), 24)  # so many that none is long enough to be waited for
        runs = [
            [self._pack(rows, extractor, workers, shards).run for workers in (1, 2)]
            for _ in range(repeats)
        ]
        return Workers(Rates.best([one for one, _ in runs]), Rates.best([two for _, two in runs]))

    def measure_pose(self) -> PoseFigures:
        """Return where the time goes with pose, and what two workers make of it."""
        extractor = choose_extractor(self._config.pose_model)
        rows = self._clips(self._config.frames)
        packed = self._pack(rows, extractor, workers=0, shards=1)
        share = sum(r.pose_seconds for r in packed.results) / packed.run.wall
        frames = int(packed.run.frames / packed.run.wall * self._config.pose_worker_seconds)
        fresh = choose_extractor(self._config.pose_model)
        workers = self.compare_workers(fresh, frames, self._config.pose_worker_repeats)
        return PoseFigures(share, _share_found(packed), workers)

    def _clips(self, frames: int) -> list[Row]:
        """Return clips, repeated or left out, of at least so many frames together."""
        rows, there = [], 0
        for number, row in enumerate(cycle(self._rows)):
            rows.append(replace(row, id=f"{number}"))
            there += self._counts[row.id]
            if there >= frames:
                return rows
        raise UserError("no frames to measure with")

    def _pack(
        self, rows: Sequence[Row], extractor: PoseExtractor, workers: int, shards: int
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


def bare_loop(rows: Sequence[Row]) -> int:
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


def _bare_frames(row: Row) -> Iterator[VideoFrame]:
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


def _rows(table: Path | None, folder: Path) -> list[Row]:
    if table is None:
        video = write_drawn_video(folder / "drawn.mp4")
        return [Row(2, "drawn", video, video.name, "drawn", None, None, None, None, SPLIT, None)]
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
