"""What a batch script becomes: one attempt of a job, that is stopped and requeued in good order.

    exec python -m signfuse_dist.cluster.batch COMMAND [word ...]

The command starts trainers, through srun and the launcher. USR1, which Slurm sends before the time
is over (``#SBATCH --signal=B:USR1@300``), and TERM ask them for a checkpoint, through the folder of
the job: the signal itself would kill the launcher and leave the trainers behind. A job that was
stopped or has failed is requeued, unless an error was the user's, Slurm has ended the job itself
(scancel, preemption), or ``SIGNFUSE_FUTILE_ATTEMPTS`` attempts in a row got no step further.

``SIGNFUSE_JOBS`` names the folder of all jobs' folders; every node must see it. Exit status: 0
finished, 75 to be started again, 2 an error in what was asked, 1 given up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from signfuse_dist.cluster.attempts import Attempts
from signfuse_dist.cluster.folder import JobFolder, Outcome
from signfuse_dist.cluster.slurm import Job, SlurmError
from signfuse_dist.engine.signals import JOB_FOLDER, REQUEUE
from signfuse_dist.errors import UserError

NUM_FUTILE_ATTEMPTS = 3
_STDOUT = 1
_ASKING = (signal.SIGUSR1, signal.SIGTERM)


class Batch:
    """One attempt of a job."""

    def __init__(self, job: Job, path: Path, num_futile: int) -> None:
        """Take the job's own folder; what an older job of the same number left there goes."""
        if job.num_restarts == 0:
            shutil.rmtree(path, ignore_errors=True)
        self._job, self._path, self._folder = job, path, JobFolder(path)
        self._folder.clear()
        self._attempts = Attempts(path, num_futile)

    def run(self, command: Sequence[str]) -> int:
        """Run the command to its end; return the exit status of the job."""
        # Before anything else: Slurm warns at once where the time is short.
        for number in _ASKING:
            signal.signal(number, self._ask_stop)
        step = self._folder.newest_step()
        self._attempts.begin(step)
        self._say(f"attempt {len(self._attempts.found)}, last checkpoint step {step}")
        refusal = self._attempts.refusal()  # also of attempts that Slurm has requeued
        if refusal:
            self._say(refusal)
            return 1
        environment = {**os.environ, JOB_FOLDER: str(self._path)}
        with subprocess.Popen(command, env=environment) as process:
            status = process.wait()
        # What is asked from here on comes too late to be heeded.
        for number in _ASKING:
            signal.signal(number, signal.SIG_IGN)
        return self._end(self._folder.outcome(status))

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        self._folder.ask_stop()
        self._say(f"stop asked by {signal.Signals(number).name.removeprefix('SIG')}")

    def _end(self, outcome: Outcome) -> int:
        step = self._folder.newest_step()
        self._attempts.end(step, outcome.why)
        self._say(f"{outcome.kind}, last checkpoint step {step}: {outcome.why}")
        if outcome.kind == "finished":
            shutil.rmtree(self._path)
            return 0
        if outcome.kind == "refused":
            self._say("not requeued: it would be refused again")
            return 2
        refusal = self._attempts.refusal()
        if refusal:
            self._say(refusal)
            return 1
        self._requeue(step)
        return REQUEUE

    def _requeue(self, step: int) -> None:
        try:
            state = self._job.state()
            if state != "RUNNING":
                # Cancelled, or preempted and requeued by Slurm: bringing it back is not ours.
                self._say(f"not requeued from here: Slurm says {state}")
                return
            attempt = len(self._attempts.found) + 1
            self._say(f"requeued as attempt {attempt}, last checkpoint step {step}")
            self._job.requeue()
        except (SlurmError, OSError) as e:
            self._say(f"not requeued: {e}. Submit the same command again: it goes on")

    def _say(self, text: str) -> None:
        # Unbuffered, for a signal's handler may say something while something is being said.
        os.write(_STDOUT, f"job {self._job.name}: {text}\n".encode())


def main(command: Sequence[str] | None = None) -> int:
    """Run one attempt of this job; return the exit status of the batch script."""
    command = sys.argv[1:] if command is None else command
    try:
        if not command:
            raise UserError("no command; usage: python -m signfuse_dist.cluster.batch COMMAND ...")
        job = Job.from_environment(os.environ)
        batch = Batch(job, _jobs_folder(os.environ) / job.id, _num_futile(os.environ))
        return batch.run(command)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def _jobs_folder(environment: Mapping[str, str]) -> Path:
    name = environment.get("SIGNFUSE_JOBS")
    if not name:
        raise UserError("SIGNFUSE_JOBS is not set: slurm/environment.sh says where jobs keep notes")
    return Path(name).resolve()


def _num_futile(environment: Mapping[str, str]) -> int:
    text = environment.get("SIGNFUSE_FUTILE_ATTEMPTS", str(NUM_FUTILE_ATTEMPTS))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"SIGNFUSE_FUTILE_ATTEMPTS is {text!r}: give a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
