"""Two trainers of one run folder: the second is refused, and the first, killed, is gone on from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from helpers.project import Project, environment, free_port
from helpers.repository import ROOT
from signfuse_dist.locks import holder_of
from signfuse_dist.run_folder import RunFolder

pytestmark = [pytest.mark.alone, pytest.mark.long]
WORDS = [
    "stage=contrastive",
    "stage.epochs=8",
    "train.checkpoint_steps=4",
    "train.dev_epochs=0",
    "train.log_steps=1",
]


def run(command: list[str]) -> subprocess.Popen[str]:
    """Start a command of a user; both of its outputs are one."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@contextmanager
def training(command: list[str], folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Train until the first checkpoint is there; end all processes afterwards."""
    with run(command) as process:
        deadline = time.monotonic() + 300
        while not list(folder.checkpoints.glob("step_*")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield process
        finally:
            kill_all(process)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a launcher and its trainers at once; nobody waits until they are gone."""
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()


def test_a_second_trainer_is_refused_and_a_killed_one_is_gone_on_from_by_the_same_command(
    project: Project, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "small" / "contrastive")
    command = project.command(tmp_path, 2, WORDS)
    with training(command, folder) as first:
        holder = holder_of(folder.lock)
        assert holder is not None
        assert first.pid in {p.pid for p in psutil.Process(holder.writer.pid).parents()}
        described = [file.read_bytes() for file in (folder.plan, folder.config, folder.versions)]
        for each in psutil.Process(first.pid).children(recursive=True):
            each.suspend()  # it would be finished before the others have started
        said, _ = (second := run(project.command(tmp_path, 1, WORDS))).communicate(timeout=200)
        assert second.returncode != 0
        assert f"the run folder {folder.path} is held by pid {holder.writer.pid} on" in said
        launch = tmp_path / "launch.yaml"
        text = (ROOT / "launch" / "cpu_zero2.yaml").read_text(encoding="utf-8")
        launch.write_text(f"{text}main_process_port: {free_port()}\n", encoding="utf-8")
        user = [sys.executable, "-m", "signfuse_dist.cli", "train", project.experiment]
        user += ["--launch", str(launch), f"train.output={tmp_path}", *WORDS]
        said, _ = (third := run(user)).communicate(timeout=200)
        assert third.returncode == 2, said
        assert f"held by pid {holder.writer.pid} on" in said
        assert [f.read_bytes() for f in (folder.plan, folder.config, folder.versions)] == described
        assert first.poll() is None, "the first is not disturbed"
        kill_all(first)
        said, _ = (again := run(command)).communicate(timeout=300)  # at once
    assert again.returncode == 0, said
    assert f"{folder.path}: taking over the lock of pid {holder.writer.pid} on" in said
    assert "resuming after step" in said
    assert folder.is_finished
    assert not folder.lock.exists()
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)), "no step was logged by two"
