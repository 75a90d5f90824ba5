"""The benchmark of packing: what it runs, and what it makes of its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pack import (
    HEIGHT,
    WIDTH,
    PackBench,
    PackFigures,
    PoseFigures,
    Rates,
    Run,
    Workers,
    bare_loop,
    bench_pack,
    write_drawn_video,
)
from helpers.little_clips import truncated, write_table, write_video
from signfuse_dist.corpora import CorpusError, read_corpus
from signfuse_dist.data.video import FrameReader, open_video
from signfuse_dist.errors import UserError

QUICK = {"frames": 20, "worker_seconds": 0.05, "repeats": 1, "worker_repeats": 1}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name, frames in (("a", 12), ("b", 15)):
        write_video(tmp_path / f"{name}.mp4", frames, 96, 64)
    rows = [("a", "a.mp4", "x", "", ""), ("b", "b.mp4", "y", "", ""), ("c", "b.mp4", "z", 0.5, 1.0)]
    return write_table(tmp_path / "t.tsv", rows, ("id", "video", "text", "start", "end"))


def test_packing_is_measured_against_the_bare_loop_and_two_workers_against_one(
    table: Path,
) -> None:
    figures = bench_pack(PackBench(table, **QUICK))
    assert figures.title.startswith(f"{table}: 3 clips, 32 frames, stored at 224 pixels")
    rates = (figures.bare, figures.packing, figures.workers.one, figures.workers.two)
    assert all(rate.wall > 0 and rate.cpu > 0 for rate in rates)
    assert 0.02 < figures.ratio < 5
    assert figures.pose is None


def test_the_bare_loop_goes_over_the_frames_that_packing_takes(table: Path) -> None:
    for row in read_corpus("table", table, "train").rows:
        with open_video(row.video) as source:
            assert bare_loop([row]) == len(list(FrameReader(source, 32, row.start, row.end)))


def test_the_drawn_video_is_one_of_720_lines(tmp_path: Path) -> None:
    with open_video(write_drawn_video(tmp_path / "v.mp4")) as source:
        frames = list(FrameReader(source, 32))
    assert len(frames) == 50
    assert frames[0].full().shape == (HEIGHT, WIDTH, 3)
    assert frames[0].full().std() > 20


def test_what_cannot_be_measured_is_said(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--pose needs --root"):
        bench_pack(PackBench(None, pose=True))
    with pytest.raises(CorpusError, match="cannot be read"):
        bench_pack(PackBench(tmp_path / "absent.tsv"))
    lost = write_table(tmp_path / "lost.tsv", [("a", "no.mp4", "x")], ("id", "video", "text"))
    with pytest.raises(UserError, match="names a video file"):
        bench_pack(PackBench(lost))


def test_a_goal_is_met_or_missed_by_the_best_of_the_runs() -> None:
    bare = Rates.best([Run(100, 2.0, 1.0), Run(100, 1.0, 2.0)])
    assert bare == Rates(wall=100.0, cpu=100.0)
    pose = PoseFigures(0.89, 0.8, Workers(Rates(17, 16), Rates(32, 16)))
    workers = Workers(Rates(100, 90), Rates(170, 88))
    figures = PackFigures("clips", bare, Rates(92.0, 91.0), workers, pose)
    assert figures.ratio == pytest.approx(0.91)
    assert workers.cpu_scaling == pytest.approx(2 * 88 / 90)
    lines = {line.split("   ")[0].strip(): line for line in str(figures).splitlines()}
    assert "0.910   goal 0.9: met" in lines["packing to bare loop, processor"]
    assert "1.700   goal 1.8: missed" in lines["two workers to one, wall"]
    assert "1.882   goal 1.8: met" in lines["two workers to one with pose, wall"]
    assert "0.890   goal 0.9: missed   (80% of the joints found)" in lines["time inside MediaPipe"]


def test_a_clip_that_cannot_be_packed_ends_the_measuring(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 40, movflags="faststart")
    truncated(tmp_path / "v.mp4", 0.6)
    table = write_table(tmp_path / "t.tsv", [("a", "v.mp4", "x")], ("id", "video", "text"))
    with pytest.raises(UserError, match="cannot be packed, so nothing is measured: truncated"):
        bench_pack(PackBench(table, **QUICK))
