"""Real processes that are frozen and killed: the one that is left names them and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.project import Project, environment, free_port
from helpers.repository import ROOT
from signfuse_dist.engine.stopping import HUNG

pytestmark = pytest.mark.alone

Pair = list["subprocess.Popen[str]"]
WORKER = ROOT / "tests" / "helpers" / "watched_worker.py"
SECONDS = 6.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two processes that have taken steps together; process 0 keeps the store."""
    port = str(free_port())
    started = []
    for rank in (0, 1):
        command = [sys.executable, str(WORKER), str(rank), port, str(tmp_path), str(SECONDS)]
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment() | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in started:
        assert process.stdout is not None
        assert [int(process.stdout.readline()) for _ in range(20)] == list(range(1, 21))
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_a_frozen_process_is_named_and_the_other_ends(pair: Pair, tmp_path: Path) -> None:
    pair[1].send_signal(signal.SIGSTOP)
    _, said = pair[0].communicate(timeout=120)
    assert pair[0].returncode == HUNG
    assert f"process 1 (host {os.uname().nodename}, pid {pair[1].pid})" in said
    assert "gives no sign of life" in said
    assert "last seen computing (step " in said
    assert "all_reduce" in (tmp_path / "stacks_0.txt").read_text(encoding="utf-8")


def test_a_job_that_is_suspended_as_a_whole_goes_on(pair: Pair) -> None:
    for process in pair:
        process.send_signal(signal.SIGSTOP)
    time.sleep(2 * SECONDS)
    for process in pair:
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
    time.sleep(SECONDS)
    assert [process.poll() for process in pair] == [None, None]


def test_a_frozen_process_that_keeps_the_store_does_not_keep_the_others(pair: Pair) -> None:
    pair[0].send_signal(signal.SIGSTOP)
    _, said = pair[1].communicate(timeout=120)
    assert pair[1].returncode == HUNG
    assert "the job's store, its launcher or process 0's machine, is gone" in said


def test_a_killed_process_is_named_by_the_one_whose_collective_broke(
    pair: Pair,
) -> None:
    pair[1].kill()
    _, said = pair[0].communicate(timeout=120)
    assert pair[0].returncode == 1
    assert f"before this process, process 1 (host {os.uname().nodename}, pid {pair[1].pid})" in said


@pytest.mark.long
def test_a_frozen_trainer_is_named_and_ends_the_launch(project: Project, tmp_path: Path) -> None:
    """The whole trainer under ZeRO-2, launched as a user does; none of its processes is left."""
    words = ["stage=contrastive", "stage.epochs=400", "train.hang_seconds=24"]
    metrics = tmp_path / "small" / "contrastive" / "metrics.jsonl"
    with subprocess.Popen(
        project.command(tmp_path, 2, words),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launch:
        deadline = time.monotonic() + 300
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert launch.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = psutil.Process(launch.pid).children(recursive=True)
        frozen = next(w for w in workers if w.environ().get("RANK") == "1")
        frozen.suspend()
        printed, _ = launch.communicate(timeout=300)
    assert launch.returncode != 0
    assert f"pid {frozen.pid}) gives no sign of life" in printed
    assert not any(worker.is_running() for worker in workers)
