"""What the check before a job says of run folders: trained, begun, damaged, held by others."""

from __future__ import annotations

import json
import re
import shutil

import yaml

from helpers.checked_job import DEMO, Job
from helpers.little_checkpoints import sign, write_checkpoint, write_model
from helpers.lock_holder import lock_holder
from signfuse_dist.engine.checkpoint_files import find_latest
from signfuse_dist.run_folder import RunFolder


def test_a_stage_whose_stage_before_is_missing_is_an_error(job: Job) -> None:
    job.words = ["stage=alignment"]
    job.finds("error", "contrastive", "Train it first: stage=contrastive")
    model = job.folder / "runs" / "demo" / "contrastive" / "model"
    write_model(model)
    job.check(0)
    write_model(model, float("nan"))
    job.finds("error", "3 numbers of fusion.weight are not finite", f"Remove {model}")
    (model / "model.safetensors").write_bytes(b"")
    job.finds("error", "model.safetensors is damaged", f"Remove {model}")


def test_a_run_folder_of_another_configuration_is_an_error(job: Job) -> None:
    from signfuse_dist.experiment import load_run

    run = load_run(DEMO, "contrastive", [f"train.output={job.folder / 'runs'}", "train.seed=3"])
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(run.to_dict()))
    job.finds("error", "train.seed was 3, is 0", "train.output=FOLDER")


def test_a_number_of_processes_that_changes_the_statistics_is_predicted(job: Job) -> None:
    begun(job, 1, meeting=4)
    job.finds("error", "was trained with 4 clips that see each other", "train.micro_batch_size=2")


def begun(job: Job, *steps: int, meeting: int = 8) -> RunFolder:
    """A contrastive stage with checkpoints of these steps: a step an epoch, of four clips."""
    from signfuse_dist.experiment import load_run

    run = load_run(DEMO, "contrastive", job.overrides)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(run.to_dict()))
    for step in steps:
        data = {"seed": 0, "epoch": step, "step": 0, "clips": 4}
        said = {"stage": "contrastive", "meeting": meeting}
        write_checkpoint(RunFolder.of(run).checkpoints, step, data=data, run=said)
    return RunFolder.of(run)


def test_the_checkpoint_that_a_stage_will_go_on_from_is_named(job: Job) -> None:
    run = begun(job, 1, 2)
    lines = [line for line in job.check(0) if f"run folder {run.path}" in line]
    assert len(lines) == 1
    assert re.search(r"^ok .*: a run of this configuration, goes on after step 2 of 2$", lines[0])


def test_a_damaged_checkpoint_is_a_warning_and_none_that_is_whole_an_error(job: Job) -> None:
    """In the words of the trainer, which asks the same function."""
    run = begun(job, 1, 2)
    (run.checkpoints / "step_00000002" / "weights.safetensors").write_bytes(b"")
    said: list[str] = []
    find_latest(run.checkpoints, said.append)
    line = job.finds("warning", said[0], "going back to step 1")
    assert "weights.safetensors is damaged" in line
    assert any("goes on after step 1 of 2" in line for line in job.check(0))
    sign(run.checkpoints / "step_00000001", data={"seed": 0, "epoch": 1, "step": 0, "clips": 5})
    job.finds(
        "error",
        "no checkpoint is whole",
        "step_00000002/weights.safetensors is damaged",
        "data.clips was 5, is 4",
    )
    shutil.rmtree(run.checkpoints)
    assert any("without a checkpoint: it starts at its beginning" in line for line in job.check(0))


def test_a_trained_stage_whose_model_is_damaged_is_an_error(job: Job) -> None:
    run = begun(job, 2)
    write_model(run.model)
    assert any("this stage is trained already" in line for line in job.check(0))
    (run.model / "model.safetensors").unlink()
    job.finds("error", "model.safetensors is missing", f"Remove {run.model} and train again")


def test_a_run_folder_in_which_another_process_trains_is_an_error_that_names_it(job: Job) -> None:
    lock = job.folder / "runs" / "demo" / "contrastive" / ".lock"
    with lock_holder(lock) as other:
        job.words = ["stage=contrastive"]
        before = lock.stat().st_mtime_ns
        job.finds("error", "contrastive: is held by pid", str(other.pid), "Wait until it has")
        assert lock.stat().st_mtime_ns == before, "looking takes no lock"
        other.kill()
        other.wait()
        assert not any("is held by" in line for line in job.check(0))


def test_a_run_folder_that_a_process_of_another_machine_holds_is_a_warning(job: Job) -> None:
    lock = job.folder / "runs" / "demo" / "contrastive" / ".lock"
    lock.parent.mkdir(parents=True)
    fields = {"writer": "00000000-1-1", "host": "node7", "command": "train.py", "since": "then"}
    lock.write_text(json.dumps(fields))
    job.words = ["stage=contrastive"]
    job.finds("warning", "is held by pid 1 on node7 since then (train.py)")
    assert lock.read_text() == json.dumps(fields)
