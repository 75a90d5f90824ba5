"""Submitting all stages and the evaluation, each after the one before. Runs on the login node.

bash slurm/pipeline.sh EXPERIMENT [option of sbatch ...] [section.key=value ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from signfuse_dist.config import STAGES, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages

_USAGE = (
    "usage: bash slurm/pipeline.sh EXPERIMENT [option of sbatch ...] [section.key=value ...], "
    "from the project folder"
)
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)?=")


@dataclass(frozen=True)
class Request:
    """The words of a command line, by what they are for."""

    experiment: str
    sbatch: tuple[str, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PipelineJob:
    """One job of the pipeline."""

    name: str
    command: tuple[str, ...]


def read_request(words: Sequence[str]) -> Request:
    """Tell sbatch's options, with or without ``=``, from ``section.key=value``.

    Raises UserError.
    """
    if not words or words[0].startswith("-") or _OVERRIDE.match(words[0]):
        raise UserError(_USAGE)
    sbatch: list[str] = []
    overrides: list[str] = []
    takes_value = False  # whether the word before was an option that may have its value here
    for word in words[1:]:
        if word.startswith("-"):
            sbatch.append(word)
        elif _OVERRIDE.match(word):
            overrides.append(word)
        elif takes_value:
            sbatch.append(word)
        else:
            raise UserError(f"{word!r} is no option of sbatch and no section.key=value; {_USAGE}")
        takes_value = word.startswith("-") and "=" not in word
    _refuse_own_options(sbatch)
    return Request(words[0], tuple(sbatch), tuple(overrides))


def _refuse_own_options(sbatch: Sequence[str]) -> None:
    for word in sbatch:
        if re.match(r"(--dependency|-d|--array|-a|--wrap|--parsable)(=|$)", word):
            raise UserError(f"{word}: the pipeline decides that itself")


def pipeline_jobs(request: Request, runs: Sequence[RunConfig]) -> Iterator[PipelineJob]:
    """Yield the jobs in order: the stages that there are, and the evaluation of the last."""
    shared = [word for word in request.overrides if not word.startswith("stage=")]
    for run in runs:
        stage = run.stage.name
        script = f"slurm/stage{STAGES.index(stage) + 1}.sh"
        yield PipelineJob(stage, (script, request.experiment, *shared))
    last = runs[-1]
    command = ("slurm/evaluate.sh", str(last.folder), "--split", last.data.test_split)
    yield PipelineJob("evaluate", command)


def submit(request: Request) -> list[tuple[str, str]]:
    """Submit every job, each after the one before has finished; return names and job ids.

    A job whose predecessor fails is cancelled by Slurm. Raises UserError with sbatch's own message;
    jobs that were submitted before it are cancelled.
    """
    submitted: list[tuple[str, str]] = []
    for job in pipeline_jobs(request, load_stages(request.experiment, request.overrides)):
        words = ["sbatch", "--parsable", *request.sbatch]
        if submitted:
            words += [f"--dependency=afterok:{submitted[-1][1]}", "--kill-on-invalid-dep=yes"]
        done = subprocess.run([*words, *job.command], capture_output=True, text=True, check=False)
        if done.returncode:
            _cancel([number for _, number in submitted])
            raise UserError(
                f"sbatch refuses {job.name}: {done.stderr.strip()}; nothing was submitted"
            )
        submitted.append((job.name, done.stdout.strip().split(";")[0]))  # 12, or 12;cluster
    return submitted


def _cancel(jobs: Sequence[str]) -> None:
    if jobs:
        subprocess.run(["scancel", *jobs], check=True)


def main(words: Sequence[str] | None = None) -> int:
    """Submit the pipeline and print its jobs; return the exit status."""
    try:
        for name, job in submit(read_request(sys.argv[1:] if words is None else words)):
            print(f"{name}\t{job}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
