"""What is asked of Slurm: who this job is, what state it is in, and to start it again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from signfuse_dist.errors import UserError


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
        found = re.search(r"\bJobState=(\w+)", shown)
        if found is None:
            raise SlurmError(f"scontrol shows no state of job {self.name}: {shown.strip()}")
        return found.group(1)

    def requeue(self) -> None:
        """Start the job again, when there is room. Raises SlurmError."""
        _scontrol("requeue", self.name)


class SlurmError(RuntimeError):
    """A command of Slurm did not do what it was asked."""


def _scontrol(*words: str) -> str:
    done = subprocess.run(
        ["scontrol", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SlurmError(f"scontrol {' '.join(words)}: {done.stdout.strip()}")
    return done.stdout
