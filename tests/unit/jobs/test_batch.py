"""One attempt of a job: what is asked of the command and of Slurm, without a Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Runs as the trainer would, then does what argv says: how it ends, and at which step.
COMMAND = """
import sys, time
from pathlib import Path
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.engine.stopping import StopRequest, stop_file

how, step, run = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
job = JobFolder.from_environment()
job.begin(run)
if how == "until stopped":
    stop = StopRequest(stop_file())
    print("waiting", flush=True)
    deadline = time.monotonic() + 30
    while not stop.asked:
        if time.monotonic() > deadline:
            sys.exit("nobody asked for a stop")
        time.sleep(0.05)
(run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
if how == "until stopped":
    job.end(finished=False)
if how in ("crash", "user error"):
    with job.failures_named():
        from signfuse_dist.errors import UserError
        raise {"crash": RuntimeError, "user error": UserError}[how]("broken")
sys.exit(how != "finish")
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1" in
  show) echo "JobId=$4 JobState=$STATE Reason=None" ;;
  requeue) exit "$REFUSES" ;;
esac
"""


class Slurm:
    """The environment of a job, with an scontrol that notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        stub = folder / "bin" / "scontrol"
        stub.parent.mkdir()
        stub.write_text(SCONTROL)
        stub.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.environment = {
            **kept,
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "SIGNFUSE_JOBS": str(folder / "jobs"),
            "SLURM_JOB_ID": "12",
            "STATE": "RUNNING",
            "REFUSES": "0",
        }

    def start(self, how: str, step: int = 0, **more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", COMMAND, how, str(step), str(self.folder / "run")]
        return subprocess.Popen(
            [sys.executable, "-m", "signfuse_dist.jobs.batch", *words],
            env={**self.environment, **more},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, how: str, step: int = 0, **more: str) -> tuple[int, str]:
        with self.start(how, step, **more) as process:
            printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def requeued(self) -> list[str]:
        if not self.calls.exists():
            return []
        return [line for line in self.calls.read_text().splitlines() if line.startswith("requeue")]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warned_job_stops_its_trainer_through_the_file_and_is_requeued(
    slurm: Slurm, number: signal.Signals
) -> None:
    with slurm.start("until stopped", 40) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)  # Slurm may send it to the process and to its group
        printed.append(process.communicate(timeout=60)[0])
    assert process.returncode == 75
    text = "".join(printed)
    assert f"job 12: stop asked by {number.name[3:]}\n" in text
    assert "job 12: stopped, last checkpoint step 40: stopped on request\n" in text
    assert "job 12: requeued as attempt 2, last checkpoint step 40\n" in text
    assert slurm.requeued() == ["requeue 12"]


def test_a_job_that_finishes_leaves_nothing(slurm: Slurm) -> None:
    status, _ = slurm.run("finish", 3)
    assert status == 0
    assert slurm.requeued() == []
    assert list((slurm.folder / "jobs").iterdir()) == []


@pytest.mark.long
def test_a_crash_is_tried_again_until_attempts_in_a_row_get_no_further(slurm: Slurm) -> None:
    limit = {"SIGNFUSE_FUTILE_ATTEMPTS": "2"}
    for restarts, step in enumerate((7, 7, 9, 9)):
        status, printed = slurm.run("crash", step, SLURM_RESTART_COUNT=str(restarts), **limit)
        assert status == 75, printed
        assert f"requeued as attempt {restarts + 2}, last checkpoint step {step}" in printed
    status, printed = slurm.run("crash", 9, SLURM_RESTART_COUNT="4", **limit)
    assert status == 1
    assert "2 attempts in a row got no further than step 9" in printed
    assert "RuntimeError: broken" in printed
    assert len(slurm.requeued()) == 4
    status, printed = slurm.run("finish", 9, SLURM_RESTART_COUNT="0", **limit)
    assert status == 0, "another job of this number has a count of its own"


def test_an_error_of_the_user_is_not_tried_again(slurm: Slurm) -> None:
    status, printed = slurm.run("user error")
    assert status == 2
    assert "UserError: broken" in printed
    assert slurm.requeued() == []


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED", "PENDING"])
def test_a_job_that_slurm_ends_itself_is_left_to_slurm(slurm: Slurm, state: str) -> None:
    status, printed = slurm.run("crash", 5, STATE=state)
    assert status == 75
    assert f"not requeued from here: Slurm says {state}" in printed
    assert slurm.requeued() == []


def test_a_job_that_may_not_be_requeued_says_so(slurm: Slurm) -> None:
    status, printed = slurm.run("crash", 5, REFUSES="1")
    assert status == 75
    assert "not requeued: scontrol requeue 12" in printed
    assert "Submit the same command again" in printed


def test_a_task_of_an_array_requeues_itself_and_not_the_array(slurm: Slurm) -> None:
    """The last task's own id is the array's, which means every task of it."""
    slurm.run("crash", 5, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3")
    assert slurm.requeued() == ["requeue 12_3"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
        ({"SIGNFUSE_JOBS": ""}, "SIGNFUSE_JOBS is not set"),
        ({"SIGNFUSE_FUTILE_ATTEMPTS": "0"}, "SIGNFUSE_FUTILE_ATTEMPTS is '0'"),
        ({"SIGNFUSE_FUTILE_ATTEMPTS": "many"}, "SIGNFUSE_FUTILE_ATTEMPTS is 'many'"),
    ],
)
def test_an_environment_that_cannot_be_is_named(
    slurm: Slurm, more: dict[str, str], named: str
) -> None:
    with slurm.start("finish", **more) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.startswith("error: ")
    assert named in error
