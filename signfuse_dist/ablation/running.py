"""The units of a plan: training each stage's run, and translating and scoring each last one."""

from __future__ import annotations

import os
from pathlib import Path

from signfuse_dist.ablation.chain import StageRun
from signfuse_dist.ablation.planning import Plan
from signfuse_dist.ablation.work import Unit
from signfuse_dist.launching import launch_command


def scores_file(run: StageRun, split: str) -> Path:
    """Return where the scores of a last stage's run are."""
    return run.folder / "evaluation" / split / "scores.json"


def make_units(plan: Plan, launch: Path, num_processes: int | None) -> list[Unit]:
    """Return the plan's units, each row's after another's, each after what it needs."""
    units: dict[str, Unit] = {}
    for final in plan.finals():
        for run in final.chain():
            if run.key not in units:
                units[run.key] = _training(plan, run, launch, num_processes)
        scoring = _scoring(plan, final, launch, num_processes)
        units[scoring.name] = scoring
    return list(units.values())


def link_all(plan: Plan) -> None:
    """Put each run's earlier stages beside it."""
    for run in plan.stage_runs():
        run.link_stages()


def _training(plan: Plan, run: StageRun, launch: Path, num_processes: int | None) -> Unit:
    words = [plan.experiment, *run.words]
    command = _command(launch, num_processes, "signfuse_dist.train", words)
    needs = (run.before.key,) if run.before else ()
    return Unit(run.key, command, lambda: run.is_done, Path(run.run.train.output), needs,
                is_trainer=True)  # fmt: skip


def _scoring(plan: Plan, run: StageRun, launch: Path, num_processes: int | None) -> Unit:
    # The other controls would decode the split again for every row.
    words = ["evaluate", str(run.folder), "--split", plan.split, "--controls", "shuffled"]
    command = _command(launch, num_processes, "signfuse_dist.cli", words)
    path = scores_file(run, plan.split)
    folder = Path(run.run.train.output)
    return Unit(f"{run.key}/evaluate-{plan.split}", command, path.is_file, folder, (run.key,))


def _command(
    launch: Path, num_processes: int | None, module: str, words: list[str]
) -> tuple[str, ...]:
    # A port of its own for each, for several run at once.
    return tuple(launch_command(launch, num_processes, module, words, "--main_process_port", "0"))


def share_cores(parallel: int) -> None:
    """Give runs that share the cores one thread a process, unless the environment says another."""
    if parallel > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
