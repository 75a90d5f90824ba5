"""`python benchmarks/balance.py` simulates a plan and prints what it leaves of a step."""

from __future__ import annotations

import re

import pytest

from benchmarks.balance import main


def test_clips_together_by_length_leave_more_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--clips", "2000", "--accumulation", "4", "--processes", "4", "--micro", "2"]
    assert main([*words, "--bucket", "16", "--steps", "16"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2,000 clips of 1")
    (row,) = re.findall(r"^\| 4 x 2 \| (.*) \|$", printed, re.M)
    drawn, by_length, bucket, *faster = map(float, re.split(r" [|/] ", row))
    assert drawn < by_length < bucket <= 1.0
    assert faster == [pytest.approx(x / drawn, abs=0.02) for x in (by_length, bucket)]


def test_more_clips_a_step_than_there_are_have_a_row_that_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--clips", "20", "--processes", "32", "--micro", "1"]) == 0
    assert "| 32 x 1 | fewer clips than a step |" in capsys.readouterr().out


def test_no_process_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--processes", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
