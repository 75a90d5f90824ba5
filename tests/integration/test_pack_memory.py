"""A packer's memory depends on its longest clip, not on how many there are or what lies around."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from helpers.repository import ROOT

MARGIN = 8.0  # MB; what must not be kept is several times as much in each test

PROGRAM = """
import re, sys
from pathlib import Path
from signfuse_dist.data.pack import PackConfig, pack

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024

first, second = map(Path, sys.argv[1:])
for table in (first, first, second):
    pack("table", table, "train", table.with_suffix(f".{peak()}"), PackConfig(), workers=0)
    print(peak())
"""


def growth(first: Path, second: Path) -> float:
    """How much the peak of a process that has packed ``first`` grows with ``second``, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, first, second],
        cwd=ROOT,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    _, warm, after = map(float, done.stdout.split())
    return after - warm


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 40, 320, 240)
    write_joints(tmp_path / "v.npz", 40)
    rows = [(f"id{i}", "v.mp4", "x", "v.npz") for i in range(125)]
    few = write_table(tmp_path / "few.tsv", rows[:5], COLUMNS)
    many = write_table(tmp_path / "many.tsv", rows, COLUMNS)
    shard = 40 * 4e-3 * 120  # what the additional clips take as JPEGs of 4 kB, in MB
    assert shard > 2 * MARGIN
    assert growth(few, many) < MARGIN


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("start", [1.0, 80.0])
def test_memory_does_not_grow_with_the_video_around_a_clip(tmp_path: Path, start: float) -> None:
    columns = (*COLUMNS, "start", "end")
    tables = []
    for name, frames in (("short", 40), ("long", 1600)):
        write_video(tmp_path / f"{name}.mp4", frames, 320, 240)
        write_joints(tmp_path / f"{name}.npz", frames)
        first = 1.0 if name == "short" else start
        row = ("id", f"{name}.mp4", "x", f"{name}.npz", first, first + 2)
        tables.append(write_table(tmp_path / f"{name}.tsv", [row], columns))
    assert growth(*tables) < MARGIN
