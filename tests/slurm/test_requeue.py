"""A real Slurm: a job is stopped by its warning, requeued, and ends. Without torch, in seconds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from helpers.local_slurm import SMALL, LocalSlurm
from helpers.repository import ROOT

pytestmark = pytest.mark.alone

# Trains one step a second until it is stopped; started again after a checkpoint, it finishes.
TRAINER = """
import sys, time
from pathlib import Path
from signfuse_dist.jobs.folder import JobFolder, newest_checkpoint
from signfuse_dist.engine.stopping import REQUEUE, StopRequest, stop_file

run = Path(sys.argv[1])
job, step = JobFolder.from_environment(), newest_checkpoint(run / "checkpoints")
job.begin(run)
resumed = step > 0
with StopRequest(stop_file()) as stop:
    (run / "started").touch()
    while not stop.asked and not resumed:
        step += 1
        time.sleep(0.1)
(run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
job.end(finished=resumed)
sys.exit(0 if resumed else 1)  # as a launcher makes it
"""
SCRIPT = """#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
source slurm/environment.sh
name_job train demo stage=finetune "train.output=$1"
exec python -m signfuse_dist.jobs.batch srun {python} {trainer} "$@"
"""


def test_a_job_that_is_warned_is_requeued_once_and_finishes_before_the_next_starts(
    slurm: LocalSlurm, tmp_path: Path
) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    script = tmp_path / "job.sh"
    words = {"python": sys.executable, "trainer": str(tmp_path / "trainer.py")}
    script.write_text(SCRIPT.format(**{name: shlex.quote(word) for name, word in words.items()}))
    run, log = tmp_path / "run", tmp_path / "job.log"
    run.mkdir()
    job = slurm.submit(*SMALL, "--job-name=signfuse-finetune", f"--output={log}", script, run)
    # As the pipeline does; it fails unless the last attempt has ended before it starts.
    (tmp_path / "next.sh").write_text(f"#!/bin/sh\ngrep ': finished' {log}\n")
    after = slurm.submit(
        *SMALL,
        f"--output={tmp_path}/next.log",
        f"--dependency=afterok:{job}",
        "--kill-on-invalid-dep=yes",
        tmp_path / "next.sh",
    )
    slurm.wait_until(job, (run / "started").exists)
    slurm.signal_batch(job, "USR1")
    assert slurm.wait(job) == "COMPLETED", log.read_text()
    printed = log.read_text()
    for line in (
        "attempt 1, last checkpoint step 0",
        "stop asked by USR1",
        "requeued as attempt 2",
        "attempt 2, last checkpoint step",
        "finished",
    ):
        assert printed.count(f"job {job}: {line}") == 1, printed
    assert slurm.wait(after) == "COMPLETED"
    assert not (slurm.folder / "jobs" / job).exists(), "nothing is left of a job that has finished"
    named = run / "demo" / "finetune" / "slurm" / f"demo-finetune-{job}.log"
    assert named.read_text() == printed, "both attempts are in the log of the run"
    assert slurm.name(job) == "demo-finetune"


def test_a_job_submitted_from_another_folder_fails_with_one_sentence(
    slurm: LocalSlurm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = slurm.submit(
        *SMALL, f"--chdir={tmp_path}", f"--output={log}", ROOT / "slurm" / "stage3.sh", "demo"
    )
    assert slurm.wait(job) == "FAILED"
    (sentence,) = log.read_text().splitlines()
    assert sentence.startswith(f"error: {tmp_path} is not the project's folder: ")
