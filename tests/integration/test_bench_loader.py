"""`python benchmarks/loader.py` measures what it says, on clips that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.loader import main
from helpers.little_clips import write_corpus
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack


def test_the_loader_is_compared_with_a_bare_loop_over_the_same_jpegs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_corpus(tmp_path / "corpus", clips=5)
    pack("table", table, "train", tmp_path / "out", PackConfig(frame_size=64), workers=0)
    command = [str(tmp_path / "out"), "--batch-size", "2", "--rounds", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "5 clips, 34 frames of 64 pixels" in printed
    rates = [float(r.replace(",", "")) for r in re.findall(r" ([\d,]+) +[\d.]+$", printed, re.M)]
    ratios = [float(ratio) for ratio in re.findall(r"([\d.]+)$", printed, re.M)]
    assert len(rates) == 4
    assert all(rate > 0 for rate in rates)
    assert ratios[-4] == 1.0
    assert ratios[-3:] == pytest.approx([rate / rates[0] for rate in rates[1:]], abs=0.01)


def test_a_split_of_one_batch_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_corpus(tmp_path / "corpus", clips=2)
    pack("table", table, "train", tmp_path / "out", PackConfig(frame_size=64), workers=0)
    assert main([str(tmp_path / "out"), "--batch-size", "4"]) == 2
    assert "do not fill two batches" in capsys.readouterr().err
