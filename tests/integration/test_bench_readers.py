"""`python benchmarks/readers.py` and `read_ahead.py`: every way reads the same frames."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import read_ahead, readers
from helpers.little_clips import write_corpus
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack


def test_every_reader_reads_all_frames_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_corpus(tmp_path / "corpus", clips=3)
    pack("table", table, "train", tmp_path / "out", PackConfig(frame_size=64), workers=0)
    command = [str(tmp_path / "out"), "--rounds", "1", "--films", str(table)]
    assert readers.main(command) == 0
    printed = capsys.readouterr().out
    assert "3 clips, " in printed
    rows = printed.splitlines()[1:]
    for name in ("webdataset", "litdata", "mosaicml-streaming", "mp4, decord", "film, PyAV"):
        row = next(row for row in rows if row.startswith(name))
        assert re.search(r" \d+\.\d\d \(", row) or "not measured: " in row
    assert all(re.search(r"\(|not measured", row) for row in rows)


def test_batches_ahead_as_far_as_a_step_takes_hide_more_of_loading(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--accumulation", "4", "--batches", "32", "--milliseconds", "8", "--rounds", "3"]
    assert read_ahead.main(words) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("4 ")]
    assert float(row.split()[-1]) > 1.05
