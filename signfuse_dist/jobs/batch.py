"""What a batch script becomes: one attempt of a job, that is stopped and requeued in good order.

    exec python -m signfuse_dist.jobs.batch COMMAND [word ...]

The command starts trainers, through srun and the launcher. USR1, which Slurm sends before the time
is over (``#SBATCH --signal=B:USR1@300``), and TERM ask them for a checkpoint, through the folder of
the job: the signal itself would kill the launcher and leave the trainers behind. A job that was
stopped or has failed is requeued, unless an error was the user's, Slurm has ended the job itself
(scancel, preemption), or ``SIGNFUSE_FUTILE_ATTEMPTS`` attempts in a row got no step further.

``SIGNFUSE_JOBS`` names the folder of all jobs' folders; every node must see it. Exit status: 0
finished, 75 to be started again, 2 an error in what was asked, 1 given up.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from signfuse_dist.answer import answer
from signfuse_dist.engine.stopping import JOB_FOLDER, REQUEUE
from signfuse_dist.errors import UserError
from signfuse_dist.files import read_json, write_text
from signfuse_dist.jobs.folder import JobEnd, JobFolder
from signfuse_dist.records import read_record

_SILENT = "it ended without a word: the job was killed, or its node was lost"
NUM_FUTILE_ATTEMPTS = 3
_STDOUT = 1
_ASKING = (signal.SIGUSR1, signal.SIGTERM)


def main(command: Sequence[str] | None = None) -> int:
    """Run one attempt of this job; return the exit status of the batch script."""
    command = sys.argv[1:] if command is None else command
    return answer(lambda: _run(command))


def _run(command: Sequence[str]) -> int:
    if not command:
        raise UserError("no command; usage: python -m signfuse_dist.jobs.batch COMMAND ...")
    job = Job.from_environment(os.environ)
    attempt = JobAttempt(job, _jobs_folder(os.environ) / job.id, _num_futile(os.environ))
    return attempt.run(command)


@dataclass(frozen=True)
class Job:
    """The job that this process runs in."""

    id: str
    """Unique, also of a task of an array."""
    name: str
    """What scontrol is given. The id of an array's last task is the id of the array."""
    num_restarts: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Job:
        """Raises UserError outside a job."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            raise UserError("this is no Slurm job (SLURM_JOB_ID is not set): submit with sbatch")
        array, task = (environment.get(f"SLURM_ARRAY_{n}") for n in ("JOB_ID", "TASK_ID"))
        name = f"{array}_{task}" if array else job_id
        return cls(job_id, name, int(environment.get("SLURM_RESTART_COUNT", "0")))

    def state(self) -> str:
        """Return what Slurm makes of the job now, such as RUNNING or CANCELLED."""
        shown = _scontrol("show", "job", "--oneliner", self.name)
        state = re.search(r"\bJobState=(\w+)", shown)
        if state is None:
            raise SlurmError(f"scontrol shows no state of job {self.name}: {shown.strip()}")
        return state.group(1)

    def requeue(self) -> None:
        """Start the job again, when there is room. Raises SlurmError."""
        _scontrol("requeue", self.name)

    def rename(self, name: str) -> None:
        """Give the job another name in squeue. Raises SlurmError."""
        _scontrol("update", f"JobId={self.name}", f"JobName={name}")


class SlurmError(RuntimeError):
    """A command of Slurm did not do what it was asked."""


class JobAttempt:
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
        self._print(f"attempt {len(self._attempts.starts)}, last checkpoint step {step}")
        refusal = self._attempts.refusal()  # also of attempts that Slurm has requeued
        if refusal:
            self._print(refusal)
            return 1
        environment = {**os.environ, JOB_FOLDER: str(self._path)}
        with subprocess.Popen(command, env=environment) as process:
            status = process.wait()
        # What is asked from here on comes too late to be heeded.
        for number in _ASKING:
            signal.signal(number, signal.SIG_IGN)
        return self._end(self._folder.end_of_attempt(status))

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        self._folder.ask_stop()
        self._print(f"stop asked by {signal.Signals(number).name.removeprefix('SIG')}")

    def _end(self, end: JobEnd) -> int:
        step = self._folder.newest_step()
        self._attempts.end(step, end.why)
        self._print(f"{end.kind}, last checkpoint step {step}: {end.why}")
        if end.kind == "finished":
            shutil.rmtree(self._path)
            return 0
        if end.kind == "refused":
            self._print("not requeued: it would be refused again")
            return 2
        refusal = self._attempts.refusal()
        if refusal:
            self._print(refusal)
            return 1
        self._requeue(step)
        return REQUEUE

    def _requeue(self, step: int) -> None:
        try:
            state = self._job.state()
            if state != "RUNNING":
                # Cancelled, or preempted and requeued by Slurm: bringing it back is not ours.
                self._print(f"not requeued from here: Slurm says {state}")
                return
            attempt = len(self._attempts.starts) + 1
            self._print(f"requeued as attempt {attempt}, last checkpoint step {step}")
            self._job.requeue()
        except (SlurmError, OSError) as e:
            self._print(f"not requeued: {e}. Submit the same command again: it goes on")

    def _print(self, text: str) -> None:
        # Unbuffered, for a signal's handler may say something while something is being said.
        os.write(_STDOUT, f"job {self._job.name}: {text}\n".encode())


class Attempts:
    """The starts of one job, kept in ``attempts.json``."""

    def __init__(self, folder: Path, num_allowed: int) -> None:
        """Allow ``num_allowed`` attempts in a row that get no step further."""
        self._path, self._num_allowed = folder / "attempts.json", num_allowed
        self.starts: list[Attempt] = []
        if self._path.exists():
            errors = f"{self._path}: not the attempts of a job"
            self.starts = list(read_record(tuple[Attempt, ...], read_json(self._path), errors))

    def begin(self, step: int) -> None:
        """Begin another; one before that never ended is ended here, with what is safe now."""
        if self.starts and self.starts[-1].ended_at is None:
            self.starts[-1] = Attempt(self.starts[-1].begun_at, step, _SILENT)
        self.starts.append(Attempt(step))
        self._write()

    def end(self, step: int, why: str) -> None:
        """End the last one."""
        self.starts[-1] = Attempt(self.starts[-1].begun_at, step, why)
        self._write()

    def refusal(self) -> str | None:
        """Return why the job must not be started again, or None."""
        ended = [attempt for attempt in self.starts if attempt.ended_at is not None]
        last = ended[-self._num_allowed :]
        if len(last) < self._num_allowed or any(_went_on(attempt) for attempt in last):
            return None
        return (
            f"{len(last)} attempts in a row got no further than step {last[-1].ended_at}; not "
            f"requeued. The last: {last[-1].why}. Put that right and submit the same command "
            f"again: it goes on from the last checkpoint"
        )

    def _write(self) -> None:
        write_text(self._path, json.dumps([asdict(attempt) for attempt in self.starts], indent=1))


@dataclass
class Attempt:
    """One start of a job: safe steps when it began and ended, and why it ended."""

    begun_at: int
    ended_at: int | None = None
    why: str = ""


def _scontrol(*words: str) -> str:
    done = subprocess.run(
        ["scontrol", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SlurmError(f"scontrol {' '.join(words)}: {done.stdout.strip()}")
    return done.stdout


def _went_on(attempt: Attempt) -> bool:
    return attempt.ended_at is not None and attempt.ended_at > attempt.begun_at


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
