"""`signfuse train` tells a stage that was stopped on request from one that has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from helpers.repository import ROOT
from signfuse_dist.cli import main
from signfuse_dist.engine.stopping import JOB_FOLDER
from signfuse_dist.experiment import load_run
from signfuse_dist.jobs import local
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.plan import make_plan
from signfuse_dist.run_folder import RunFolder, begin


@pytest.mark.parametrize(("finished", "status"), [(None, 1), (False, 75), (True, 1)])
@pytest.mark.parametrize("in_job", [False, True])
def test_the_launchers_1_becomes_75_when_the_trainer_says_that_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    finished: bool | None,
    status: int,
    in_job: bool,
) -> None:
    def wait(command: Sequence[str], environment: Mapping[str, str]) -> int:
        folder = Path(environment[JOB_FOLDER])
        assert (folder == tmp_path) == in_job
        job = JobFolder(folder)
        job.begin(tmp_path / "run")
        if finished is not None:
            job.end(finished=finished)
        return 1

    monkeypatch.setattr(local, "_wait", wait)
    monkeypatch.delenv(JOB_FOLDER, raising=False)
    if in_job:
        monkeypatch.setenv(JOB_FOLDER, str(tmp_path))
    experiment = str(ROOT / "configs" / "experiment" / "demo.yaml")
    launch = str(ROOT / "launch" / "cpu_zero2.yaml")
    words = ["train", experiment, "--launch", launch, f"train.output={tmp_path}"]
    assert main(words) == status


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
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    launch = ROOT / "launch" / "cpu_zero2.yaml"  # of two processes
    assert local.launcher_environment(launch, processes) == variables


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
