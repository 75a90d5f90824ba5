"""A clip that hangs, or takes its process with it, does not stand in the next one's way."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.reading_work import never_ready, read_or_not
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.serve import reading as module
from signfuse_dist.serve.reading import ReadingProcess, Upload


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadingProcess[tuple[str, int]]]:
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.0)
    process: ReadingProcess[tuple[str, int]] = ReadingProcess(read_or_not, 0.5)
    yield process
    process.close()
    assert multiprocessing.active_children() == []


def upload(folder: Path, name: str) -> Upload:
    return Upload(folder / name, folder / "overlay.mp4")


def test_a_clip_that_hangs_is_ended_after_the_limit_and_the_next_is_read(
    reading: ReadingProcess[tuple[str, int]], tmp_path: Path
) -> None:
    name, first = reading.read(upload(tmp_path, "good.mp4"))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than 0\.5 s and was ended"):
        reading.read(upload(tmp_path, "stuck.mp4"))
    assert 0.5 <= time.monotonic() - began < 20
    name, second = reading.read(upload(tmp_path, "next.mp4"))
    assert name == "next.mp4"
    assert second != first


def test_a_clip_that_takes_its_process_with_it_is_named_so_and_the_next_is_read(
    reading: ReadingProcess[tuple[str, int]], tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"the process that read the clip ended \(killed by SIGABRT"
    ):
        reading.read(upload(tmp_path, "dying.mp4"))
    assert reading.read(upload(tmp_path, "next.mp4"))[0] == "next.mp4"


def test_a_clip_that_is_wrong_costs_no_process(
    reading: ReadingProcess[tuple[str, int]], tmp_path: Path
) -> None:
    _, first = reading.read(upload(tmp_path, "good.mp4"))
    with pytest.raises(UserError, match=r"unreadable video: broken\.mp4"):
        reading.read(upload(tmp_path, "broken.mp4"))
    assert reading.read(upload(tmp_path, "next.mp4")) == ("next.mp4", first)


def test_a_process_that_cannot_start_is_the_machines_fault() -> None:
    with pytest.raises(MachineError, match=r"did not start: .*\(ended with status 3\)"):
        ReadingProcess(never_ready, 1.0).start()
