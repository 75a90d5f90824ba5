"""Submitting all stages and the evaluation, each after the one before. Runs on the login node.

    bash slurm/pipeline.sh EXPERIMENT [option of sbatch ...] [section.key=value ...]

Before it submits anything it looks at what the jobs need, as `signfuse check` does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.answer import answer
from signfuse_dist.config import STAGES, RunConfig, StageName
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.jobs.logs import log_of_evaluation, log_of_stage
from signfuse_dist.preflight.check import Target, refuse_errors
from signfuse_dist.run_folder import RunFolder

_USAGE = (
    "usage: bash slurm/pipeline.sh EXPERIMENT [option of sbatch ...] [section.key=value ...], "
    "from the project folder"
)
_LAUNCH = "launch/cluster_zero2.yaml"  # as in slurm/environment.sh
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)?=")


@dataclass(frozen=True)
class Request:
    """The words of a command line, by what they are for."""

    experiment: str
    sbatch: tuple[str, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PipelineJob:
    """One job of the pipeline; ``job_name`` is its name in Slurm, unless sbatch is given one."""

    name: str
    job_name: str
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
        words = (_script(stage), request.experiment, *shared)
        yield PipelineJob(stage, log_of_stage(run).job, words)
    last = runs[-1]
    command = ("slurm/evaluate.sh", str(last.folder), "--split", last.data.test_split)
    evaluation = log_of_evaluation(last.folder, last.data.test_split)
    yield PipelineJob("evaluate", evaluation.job, command)


def _script(stage: StageName) -> str:
    return f"slurm/stage{STAGES.index(stage) + 1}.sh"


def check_before(request: Request, runs: Sequence[RunConfig]) -> None:
    """Look at the stages that are not trained yet, as `signfuse check` does.

    Prints warnings on standard error; raises UserError with what would end the first job.
    """
    left = [run for run in runs if not RunFolder.of(run).is_finished]
    if left:
        script = Path(_script(left[0].stage.name))
        if not script.is_file():
            raise UserError(f"{script}: no such file; {_USAGE}")
        launch = Path(os.environ.get("LAUNCH", _LAUNCH))
        world_size = count_processes(request.sbatch, script.read_text(encoding="utf-8"), os.environ)
        refuse_errors(left, Target(world_size, launch, started_by="sbatch"))


def count_processes(options: Sequence[str], script: str, environment: Mapping[str, str]) -> int:
    """Return the training processes of a job, as slurm/environment.sh counts them.

    Args:
        options: of sbatch, which come before those of the script.
        script: the text of the batch script, whose ``#SBATCH`` lines say the rest.
        environment: PROCESSES_PER_NODE says how many there are on a node; without it each GPU of a
            node has one.
    """
    words = [*re.findall(r"^#SBATCH (\S+)", script, re.MULTILINE), *options]
    nodes = _last_number(words, "--nodes", "-N") or 1
    gpus = _last_number(words, "--gpus-per-node")
    each = environment.get("PROCESSES_PER_NODE", "")
    return nodes * (int(each) if each.isdecimal() else gpus or 1)


def _last_number(words: Sequence[str], *names: str) -> int | None:
    """Return the number of an option such as ``--nodes=2``, ``-N 2`` or ``--gpus-per-node=a:4``."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            number = re.fullmatch(r"(?:[^:]*:)?(\d+)(?:-\d+)?", value if equals else following)
            found = int(number.group(1)) if number else found
    return found


def submit(request: Request) -> list[tuple[str, str]]:
    """Submit every job, each after the one before has finished; return names and job ids.

    A job whose predecessor fails is cancelled by Slurm. Raises UserError where the check finds an
    error, or with sbatch's own message; jobs that were submitted before it are cancelled.
    """
    submitted: list[tuple[str, str]] = []
    runs = load_stages(request.experiment, request.overrides)
    check_before(request, runs)
    for job in pipeline_jobs(request, runs):
        words = ["sbatch", "--parsable", f"--job-name={job.job_name}", *request.sbatch]
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
    return answer(lambda: _run(sys.argv[1:] if words is None else words))


def _run(words: Sequence[str]) -> int:
    for name, job in submit(read_request(words)):
        print(f"{name}\t{job}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
