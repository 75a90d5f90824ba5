from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.repository import ROOT
from signfuse_dist.corpora import ClipRow
from signfuse_dist.data.finished import ShardTask
from signfuse_dist.data.pack_workers import Death, WorkerPool, longest_first
from signfuse_dist.errors import UserError


def work(task: int, report) -> int:
    report(f"piece of {task}", 0)
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 7:
        raise UserError("seven cannot be done")
    report("", 1)
    return task * task


def test_a_worker_that_dies_is_named_and_takes_no_other_task_with_it():
    finished = []
    pool = WorkerPool(work, 2, lambda name, count: finished.append(count))
    outcomes = dict(pool.run([1, 2, 3, 4]))
    assert outcomes == {0: 1, 1: Death("piece of 2", "killed by SIGKILL"), 2: 9, 3: 16}
    assert sum(finished) == 3


def test_an_error_in_a_task_reaches_the_caller():
    with pytest.raises(UserError, match="seven cannot be done"):
        list(WorkerPool(work, 1, lambda name, count: None).run([1, 7]))


def test_without_workers_tasks_run_in_this_process():
    assert list(WorkerPool(work, 0, lambda name, count: None).run([3, 1])) == [(0, 9), (1, 1)]


SLOW = """
import multiprocessing, pathlib, time
if multiprocessing.current_process().name != "MainProcess":
    (pathlib.Path(__file__).parent / f"importing-{time.monotonic_ns()}").touch()
    time.sleep(2)
def work(task, report):
    return task
"""
POOL = """
import slow
from signfuse_dist.answer import answer
from signfuse_dist.data.pack_workers import WorkerPool
def run():
    list(WorkerPool(slow.work, 2, lambda name, count: None).run([1, 2]))
    return 0
if __name__ == "__main__":
    raise SystemExit(answer(run))
"""


def test_ctrl_c_while_workers_import_what_they_need_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    (tmp_path / "pool.py").write_text(POOL, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "pool.py"],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("importing-*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # The key reaches all at once; a worker that heeds it is given the time to say so.
        for worker in psutil.Process(process.pid).children(recursive=True):
            worker.send_signal(signal.SIGINT)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert errors == "interrupted; run the same command again to go on\n"
    assert process.returncode == 130


def shard(name: str, *clips: tuple[float | None, int], folder: Path) -> ShardTask:
    """A shard of clips of so many seconds, whose videos have so many bytes."""
    rows = []
    for number, (seconds, size) in enumerate(clips):
        video = folder / f"{name}-{number}.mp4"
        video.write_bytes(bytes(size))
        row = ClipRow(2, video.stem, video, video.name, "", 0.0, seconds, None, None, "train", None)
        rows.append(row)
    return ShardTask(name, tuple(rows))


def test_the_longest_shard_is_begun_first_by_seconds_else_by_bytes(tmp_path: Path) -> None:
    timed = [
        shard("short", (1.0, 9), (1.0, 9), folder=tmp_path),
        shard("long", (9.0, 1), folder=tmp_path),
        shard("middle", (2.0, 1), (2.0, 1), folder=tmp_path),
    ]
    assert [t.name for t in longest_first(timed, 2)] == ["long", "middle", "short"]
    untimed = [*timed[:2], shard("gone", (None, 1), folder=tmp_path)]
    (tmp_path / "gone-0.mp4").unlink()
    assert [t.name for t in longest_first(untimed, 2)] == ["short", "long", "gone"]


def test_one_worker_and_one_for_each_shard_keep_the_order(tmp_path: Path) -> None:
    tasks = [shard("a", (1.0, 1), folder=tmp_path), shard("b", (2.0, 1), folder=tmp_path)]
    for workers in (0, 1, 2, 5):
        assert longest_first(tasks, workers) == tasks
