"""`python benchmarks/opening.py` opens one split both ways."""

from __future__ import annotations

import re

import pytest

from benchmarks.opening import main


def test_a_split_is_opened_from_columns_and_from_indexes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--clips", "300", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "300 clips, columns of 0 MB" in printed
    assert len(re.findall(r"from the (?:columns|indexes): +\d+\.\d\d CPU s, +\d+ MB", printed)) == 2
    assert re.search(r"\d+\.\d times$", printed.strip())


def test_no_clips_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--clips", "0"]) == 2
    assert "--clips" in capsys.readouterr().err
