"""The log of a run: one line an interval, each step once, whatever happened in between."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from signfuse_dist.engine.metrics import MetricsLog


def write(folder: Path, start: int, steps: range, active: bool = True) -> None:
    log = MetricsLog(folder, 10, start, active)
    for step in steps:
        log.advance()
        log.write({"step": step, "total": 1.0 / step})
    log.close()


def rows(folder: Path) -> list[dict[str, float]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 10, 0, True)
    log.write({"step": 1, "total": 0.5})
    assert rows(tmp_path) == [{"step": 1, "total": 0.5}]
    log.close()


def test_a_resumed_log_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 4, range(5, 7))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 5, "to', '{"total": 1', "{", '{"total": 3.0}', "5"])
def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path, torn: str) -> None:
    write(tmp_path, 0, range(1, 5))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(torn)
    write(tmp_path, 4, range(5, 6))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_whole_line_without_its_end_of_line_is_kept_apart_from_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}', encoding="utf-8")
    write(tmp_path, 2, range(3, 4))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_stage_that_begins_again_begins_its_log_again(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 5))
    write(tmp_path, 0, range(1, 3))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_only_the_first_process_writes_and_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0, range(1, 3))
    write(tmp_path, 1, range(2, 9), active=False)
    log = MetricsLog(tmp_path, 10, 1, False)
    log.print_main("not heard")
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert "not heard" not in "".join(capsys.readouterr())


def test_a_disk_that_is_full_loses_no_line_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made full by the limit on a file's size: a write is cut short, the next is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = MetricsLog(tmp_path, 10, 0, True)
    long = "x" * 400_000
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        for step in range(1, 5):
            log.write({"step": step, "text": long})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = "".join(capsys.readouterr())
    assert said.count("metrics.jsonl cannot be written (File too large): training goes on") == 2
    assert (tmp_path / "metrics.jsonl").stat().st_size == 1_000_000
    log.write({"step": 5, "text": ""})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
