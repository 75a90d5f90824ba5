"""`signfuse train` looks before it launches, and answers ctrl-C for what it has launched."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from helpers.repository import ROOT
from signfuse_dist import nvidia
from signfuse_dist.cli import main
from signfuse_dist.engine.stopping import JOB_FOLDER
from signfuse_dist.experiment import load_run
from signfuse_dist.jobs import local
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.plan import make_plan
from signfuse_dist.run_folder import RunFolder, begin

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)"
# As a trainer that takes steps: it writes its checkpoint when the file asks for it.
TRAINER = """
import os, pathlib, sys, time
stop = pathlib.Path(os.environ["SIGNFUSE_JOB_FOLDER"]) / "stop"
while not stop.exists():
    time.sleep(0.01)
sys.exit(75)
"""


def press(job: JobFolder, monkeypatch: pytest.MonkeyPatch, presses: int, code: str) -> Popen[bytes]:
    """Wait for a launcher that runs this code, and press ctrl-C while it does; return it."""
    started: list[Popen[bytes]] = []

    def popen(*words: Any, **options: Any) -> Popen[bytes]:
        started.append(Popen(*words, **options))
        return started[-1]

    def alarm(*_: object) -> None:
        nonlocal presses
        presses -= 1
        if presses >= 0:
            signal.raise_signal(signal.SIGINT)
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    monkeypatch.setattr(local.subprocess, "Popen", popen)
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    folder = str(job._path)
    try:
        with pytest.raises(KeyboardInterrupt):
            local._wait([sys.executable, "-c", code], {**os.environ, JOB_FOLDER: folder}, job)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return started[0]


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "job")
    folder.clear()
    folder.begin(tmp_path / "run")
    return folder


def test_ctrl_c_ends_trainers_that_take_no_steps_yet(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert press(job, monkeypatch, 1, SLEEPER).returncode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_ctrl_c_asks_trainers_that_take_steps_for_a_checkpoint(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job.take_steps()
    assert press(job, monkeypatch, 1, TRAINER).returncode == 75
    assert capfd.readouterr().err == "stopping after this step; ctrl-C again stops at once\n"


def test_ctrl_c_again_ends_trainers_at_once(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.take_steps()
    assert press(job, monkeypatch, 2, SLEEPER).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("processes", "gpu", "variables"),
    [
        (None, False, {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}),
        (1, False, {"DS_ACCELERATOR": "cpu"}),
        (4, True, {"OMP_NUM_THREADS": "1"}),
        (1, True, {}),
    ],
)
def test_the_launcher_is_told_what_it_would_decide_and_announce(
    monkeypatch: pytest.MonkeyPatch, processes: int | None, gpu: bool, variables: dict[str, str]
) -> None:
    """torchrun gives one process all cores, so a single one is not told of threads."""
    monkeypatch.setattr(nvidia, "count_gpus", lambda _: int(gpu))
    file = ROOT / "launch" / "cpu_zero2.yaml"  # of two processes
    assert local.launcher_environment(local.Launch(file, processes)) == variables


@pytest.mark.parametrize("trained", ["contrastive", "finetune"])
def test_a_changed_key_is_refused_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: str,
) -> None:
    monkeypatch.setattr(local, "_wait", lambda *_: pytest.fail("something was launched"))
    experiment = str(ROOT / "configs" / "experiment" / "demo.yaml")
    output = f"train.output={tmp_path}"
    run = load_run(experiment, trained, [output])
    begin(run, make_plan(20, run.stage, run.train, 1), None, main=True)
    RunFolder.of(run).model.mkdir()
    launch = str(ROOT / "launch" / "cpu_zero2.yaml")
    words = ["train", experiment, "--launch", launch, output, "stage.learning_rate=1e-3"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"holds stage {trained} of another configuration (stage.learning_rate was" in error
