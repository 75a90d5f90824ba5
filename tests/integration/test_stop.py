"""Every way to ask `signfuse train` or the launcher for a stop ends in one checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.project import Project, environment
from helpers.repository import ROOT
from signfuse_dist.engine.checkpoint_files import find_latest
from signfuse_dist.jobs.folder import newest_checkpoint

pytestmark = pytest.mark.long
# 100 steps, and no checkpoint but that of the stop.
WORDS = (
    "stage=contrastive",
    "stage.epochs=20",
    "train.checkpoint_steps=1000",
    "train.dev_epochs=0",
)


def stop(command: list[str], run: Path, *numbers: int, group: bool = False) -> tuple[int, str]:
    """Start a command, send it the signals after five steps; return its status and what it said."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        for number in numbers:
            (os.killpg if group else os.kill)(process.pid, number)
        printed, _ = process.communicate(timeout=300)
    assert psutil.wait_procs(workers, timeout=60)[1] == [], "no process is left behind"
    return process.returncode, printed


def assert_stopped(run: Path, printed: str) -> None:
    assert f"{run}: stopped; run the same command again" in printed
    step = newest_checkpoint(run / "checkpoints")
    assert 5 <= step < 100, printed
    found = find_latest(run / "checkpoints", print)
    assert found is not None
    assert (found.path, found.step) == (run / "checkpoints" / f"step_{step:08d}", step)


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGUSR1, False)],
)
def test_signfuse_train_stops_in_good_order_and_says_to_be_started_again(
    project: Project, tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    command = [
        sys.executable,
        "-m",
        "signfuse_dist.cli",
        "train",
        project.experiment,
        "--launch",
        "launch/cpu_zero2.yaml",
        f"train.output={tmp_path}",
        *WORDS,
    ]
    run = tmp_path / "small" / "contrastive"
    status, printed = stop(command, run, number, group=group)
    assert status == 75, printed
    assert_stopped(run, printed)


def test_a_launcher_that_is_told_to_end_lets_its_processes_write_a_checkpoint(
    project: Project, tmp_path: Path
) -> None:
    command = project.command(tmp_path, 2, list(WORDS))
    run = tmp_path / "small" / "contrastive"
    status, printed = stop(command, run, signal.SIGTERM)
    assert status != 0
    assert_stopped(run, printed)
