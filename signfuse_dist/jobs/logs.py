"""What a batch job is called, and where its log is found: beside what the job writes.

    python -m signfuse_dist.jobs.logs COMMAND word ...

COMMAND is `train`, with the words of `signfuse_dist.train`, or `evaluate`, `pack` or `ablate` of
`signfuse`. Slurm opens a job's log before anybody can tell which folder the job is about: it lies
where the job was submitted, and gets a second name in that folder here. A job that is requeued goes
on in the same file. Exit status: 0; 2 for words that are wrong, 75 where the machine is at fault,
before anything is started.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.answer import answer
from signfuse_dist.config import RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.jobs.batch import Job, SlurmError
from signfuse_dist.run_folder import RunFolder

FOLDER = "slurm"
"""Folder of logs in a packed split and beside an ablation's runs; a run folder has its own."""
_DEFAULT = "signfuse-"  # begins the name that each script gives its job


@dataclass(frozen=True)
class JobLog:
    """What a job is called, and the folder in which its log has that name."""

    job: str
    folder: Path

    def path(self, job_id: str) -> Path:
        """Return the log's name there; a name of several words, or of a path, becomes one."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self.job)}-{job_id}.log"


def log_of_stage(run: RunConfig) -> JobLog:
    """Return what the job of a stage is called, and its folder."""
    return JobLog(f"{run.name}-{run.stage.name}", RunFolder.of(run).job_logs)


def log_of_evaluation(run_folder: Path, split: str) -> JobLog:
    """Return the same of an evaluation; raise UserError where the split's name is none."""
    folder = RunFolder(run_folder)
    folder.evaluation(split)
    experiment = run_folder.absolute().parent.name
    return JobLog(f"{experiment}-evaluate-{split}", folder.job_logs)


def log_of(command: str, words: Sequence[str]) -> JobLog:
    """Return the same of any command; raise UserError for an error of its words.

    What argparse refuses ends the program with its message and status 2.
    """
    if command == "train":
        if not words:
            raise UserError("no experiment; give its file, or its name in configs/experiment")
        return log_of_stage(load_run(words[0], None, words[1:]))
    from signfuse_dist.cli import build_parser, parse

    options = parse(build_parser(command), [command, *words])
    if command == "evaluate":
        RunFolder.open(options.run_folder)
        return log_of_evaluation(options.run_folder, options.split)
    if command == "ablate":
        from signfuse_dist.ablation.runs import Chains

        chains = Chains(options.experiment, options.overrides)
        return JobLog(f"{chains.base.name}-ablate", chains.root / FOLDER)
    return JobLog(f"{options.corpus}-pack-{options.split}", options.out / FOLDER)


def main(words: Sequence[str] | None = None) -> int:
    """Name this job and its log, the file that is standard output; return the exit status."""
    words = sys.argv[1:] if words is None else words
    return answer(lambda: _name_log(words))


def _name_log(words: Sequence[str]) -> int:
    if not words:
        raise UserError("no command; usage: python -m signfuse_dist.jobs.logs COMMAND word ...")
    job = Job.from_environment(os.environ)
    log = log_of(words[0], words[1:])
    _link(_standard_output(), log.path(job.name))
    if os.environ.get("SLURM_JOB_NAME", "").startswith(_DEFAULT):
        try:
            job.rename(log.job)
        except (SlurmError, OSError) as e:
            print(f"the job keeps its name: {e}", flush=True)
    return 0


def _standard_output() -> Path | None:
    """Return the file that standard output is; None where it is a terminal or nothing."""
    if not stat.S_ISREG(os.fstat(1).st_mode):
        return None
    return Path(os.readlink("/proc/self/fd/1"))


def _link(log: Path | None, name: Path) -> None:
    """Give the log its name: a hard link, or a symbolic one to another file system."""
    if log is None:
        return
    try:
        if name.exists() and name.samefile(log):
            return  # the job was requeued
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        try:
            name.hardlink_to(log)
        except OSError:
            name.symlink_to(log)
    except OSError as e:
        print(f"the log has no name {name} ({e.strerror}): it is {log}", flush=True)
        return
    print(f"log: {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
