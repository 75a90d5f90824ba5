"""A step that is not finite under ZeRO-2: no process takes it, and all know at the same step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import environment, free_port
from helpers.repository import ROOT

WORKER = ROOT / "tests" / "helpers" / "broken_steps_worker.py"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on two processes that ends with nothing but steps that are not finite."""
    folder = tmp_path_factory.mktemp("broken")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "launch/cpu_zero2.yaml",
        "--main_process_port",
        str(free_port()),
        str(WORKER),
        str(folder),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def files(folder: Path, step: int) -> dict[str, str]:
    state = (folder / "checkpoints" / f"step_{step:08d}" / "state.json").read_text("utf-8")
    return dict(json.loads(state)["files"])


def test_weights_moments_and_statistics_stay_as_they_were(broken: tuple[Path, str]) -> None:
    folder, _ = broken
    saved = {step: files(folder, step) for step in range(1, 6)}
    assert saved[2] == saved[1], "a loss of process 1"
    assert saved[4] == saved[3], "a gradient of process 0"
    assert saved[3] != saved[2]
    assert saved[5] != saved[4]


def test_the_clips_are_named_by_the_process_that_has_them(broken: tuple[Path, str]) -> None:
    _, printed = broken
    assert "step 2: the loss is not finite; clips of this process: clip 2, bad loss" in printed
    assert "step 2: the loss is not finite; clips of this process: none" in printed
    gradient = "step 4: the gradient is not finite (every loss is); clips of this process: clip 4"
    assert f"{gradient}, bad gradient" in printed
    assert f"{gradient}, x" in printed, "whose gradient it was is not known"


def test_every_process_stops_at_the_same_step(broken: tuple[Path, str]) -> None:
    folder, printed = broken
    for rank in (0, 1):
        assert f"process {rank} ends: step 15: the loss is not finite" in printed
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    counted = [json.loads(line)["skipped_steps"] for line in lines]
    assert counted == [0, 1, 0, 1, 0, *[1] * 9]
