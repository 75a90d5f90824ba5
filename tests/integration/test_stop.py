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

from helpers.project import Project, environment, free_port, said_by_others
from helpers.repository import ROOT
from signfuse_dist.engine.checkpoint_files import find_latest
from signfuse_dist.jobs.folder import newest_checkpoint

pytestmark = [pytest.mark.alone, pytest.mark.long]
# 100 steps, and no checkpoint but that of the stop.
WORDS = (
    "stage=contrastive",
    "stage.epochs=20",
    "train.checkpoint_steps=1000",
    "train.dev_epochs=0",
)


def bare_environment() -> dict[str, str]:
    """The environment of somebody who knows nothing of launchers."""
    return {
        n: v for n, v in environment().items() if n not in ("OMP_NUM_THREADS", "DS_ACCELERATOR")
    }


def stop(
    command: list[str], run: Path, *numbers: int, group: bool, variables: dict[str, str]
) -> tuple[int, str]:
    """Start a command, send it the signals after five steps; return its status and what it said."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
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
    run = tmp_path / "small" / "contrastive"
    command, variables = train(project, tmp_path), bare_environment()
    status, printed = stop(command, run, number, group=group, variables=variables)
    assert said_by_others(printed) == [], "no library's banner, warning or bar"
    assert_stopped(run, printed)
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    if number == signal.SIGINT:
        assert (status, last) == (130, "interrupted; run the same command again to go on")
    else:
        assert (status, last.partition(";")[0]) == (75, "stage contrastive did not finish")


def train(project: Project, output: Path) -> list[str]:
    """Return the command of a user for two processes, at a port of its own."""
    launch = output / "launch.yaml"
    text = (ROOT / "launch" / "cpu_zero2.yaml").read_text(encoding="utf-8")
    launch.write_text(f"{text}main_process_port: {free_port()}\n", encoding="utf-8")
    command = [sys.executable, "-m", "signfuse_dist.cli", "train", project.experiment]
    return [*command, "--launch", str(launch), f"train.output={output}", *WORDS]


def test_ctrl_c_while_trainers_start_is_one_line_and_leaves_nobody(
    project: Project, tmp_path: Path
) -> None:
    with subprocess.Popen(
        train(project, tmp_path),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        found: list[psutil.Process] = []
        deadline = time.monotonic() + 120
        while len(found) < 3:  # the launcher and two trainers, which import torch now
            assert time.monotonic() < deadline
            time.sleep(0.05)
            found = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        pressed = time.monotonic()
        printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - pressed < 15
    assert psutil.wait_procs(found, timeout=10)[1] == [], "no process is left behind"
    said = [line for line in printed.splitlines() if not line.startswith("warning ")]
    assert (process.returncode, said) == (130, ["interrupted; run the same command again to go on"])


def test_a_launcher_that_is_told_to_end_lets_its_processes_write_a_checkpoint(
    project: Project, tmp_path: Path
) -> None:
    command = project.command(tmp_path, 2, list(WORDS))
    run = tmp_path / "small" / "contrastive"
    status, printed = stop(command, run, signal.SIGTERM, group=False, variables=environment())
    assert status != 0
    assert_stopped(run, printed)
