"""`python benchmarks/translate.py` translates a split both ways, to the same sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.translate import main
from helpers.project import Project
from helpers.untrained_run import write_run  # tests/helpers/untrained_run.py

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_clips_of_a_split_are_timed_both_ways(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(project, tmp_path)
    assert main([str(run), str(project.folder / "corpus"), "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "5 clips, 0 workers" in printed
    assert len(re.findall(r"(?:evaluate|translate) +\d+\.\d clips/s, +\d+\.\d\d s", printed)) == 2
    assert re.search(r"translate at \d+\.\d\d of the speed of evaluate, \d+\.\d\d by", printed)
    assert main([str(run), str(project.folder / "corpus"), "--rounds", "0"]) == 2
