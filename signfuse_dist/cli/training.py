"""What comes before and around training: `check`, `train` and `ablate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.cli import add_options, from_options, whole_numbers

if TYPE_CHECKING:
    from signfuse_dist.ablation.runs import AblationPlan


def add_check(command: argparse.ArgumentParser) -> None:
    """Describe `check` and add its options."""
    from signfuse_dist.preflight.check import Target

    command.description = (
        "Resolve an experiment, print the plan, and look at what a job needs: shards, LLM, "
        "weights, disk, memory of a GPU, attention, launch file, port, packages. Everything is "
        "reported together, with what to do. Imports no torch. Status 1: an error was found."
    )
    add_run(command)
    add_options(command, Target)
    command.add_argument(
        "--parameters",
        action="store_true",
        help="build the model without memory and count its parameters (this imports torch)",
    )
    command.set_defaults(run=_check)


def add_train(command: argparse.ArgumentParser) -> None:
    """Describe `train` and add its options."""
    command.description = (
        "Run `accelerate launch -m signfuse_dist.train` for each stage in order. Finished stages "
        "are skipped and a stopped one goes on where it was. For one stage, another launcher or a "
        "cluster, see the README and slurm/."
    )
    add_run(command)
    _add_launch(command)
    command.set_defaults(run=_train)


def add_ablate(command: argparse.ArgumentParser) -> None:
    """Describe `ablate` and add its options."""
    from signfuse_dist.data.pack_workers import Division

    command.description = (
        "Train what the rows need, each shared run once, score every row and write tables and "
        "charts into OUTPUT/ablation/tables. Interrupted, run it again: what is finished is kept "
        "and what was stopped goes on. Overrides hold in every row. Several tasks, on one machine "
        "or as an array job, share the work."
    )
    command.add_argument(
        "names", metavar="NAME", help="files of configs/ablation or paths, with commas; or `all`"
    )
    add_run(command)
    command.add_argument(
        "--seeds",
        type=_seeds,
        default=(0,),
        metavar="N,N,...",
        help="each row is trained once with each seed (default: 0)",
    )
    command.add_argument("--split", help="scored (default: data.dev_split, as the paper asks)")
    only = command.add_mutually_exclusive_group()
    only.add_argument(
        "--plan", action="store_true", help="only print the runs, what is shared, and their steps"
    )
    only.add_argument(
        "--collect", action="store_true", help="only write the tables of what is finished"
    )
    only.add_argument(
        "--parameters",
        action="store_true",
        help="only count the parameters of every row, from models without memory",
    )
    _add_launch(command)
    command.add_argument(
        "--parallel",
        type=int,
        default=1,
        help="runs at once, for CPUs: on GPUs they would meet on the same ones (default: 1)",
    )
    add_options(command, Division, "task_id", "num_tasks")
    command.set_defaults(run=_ablate)


def add_run(command: argparse.ArgumentParser) -> None:
    """Add what names a run: an experiment, and overrides of its configuration."""
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, such as stage.epochs=3 or model=smollm2_135m",
    )


def _add_launch(command: argparse.ArgumentParser) -> None:
    from signfuse_dist.jobs.local import DEFAULT_LAUNCH

    defaults = ", ".join(f"{name} with {gpus}" for gpus, name in DEFAULT_LAUNCH.items())
    command.add_argument("--launch", type=Path, help=f"a file of launch/ (default: {defaults})")
    command.add_argument("--num-processes", type=int, help="instead of the launch file's")


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(dict.fromkeys(whole_numbers(text)))
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text}: a seed is 0 or more")
    return seeds


def _check(options: argparse.Namespace) -> int:
    from signfuse_dist.errors import raise_together
    from signfuse_dist.preflight.check import Target, check_job, describe
    from signfuse_dist.preflight.finding import summary

    # Inside a job it is Slurm's scripts that start the trainers.
    started_by = "sbatch" if os.environ.get("SLURM_JOB_ID") else "accelerate"
    target = from_options(Target, options, started_by=started_by)
    job = describe(options.experiment, options.overrides, target.world_size)
    findings = check_job(job.runs, job.plans, target)
    print(job.text)
    print(summary(findings))
    raise_together(
        job.errors,
        f"{options.experiment} on {target.world_size} processes cannot run",
    )
    if options.parameters:
        from signfuse_dist.preflight import parameters

        print(parameters.describe(options.experiment, options.overrides))
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _train(options: argparse.Namespace) -> int:
    from signfuse_dist.jobs.local import train_stages

    return train_stages(
        options.experiment, options.overrides, options.launch, options.num_processes
    )


def _ablate(options: argparse.Namespace) -> int:
    from signfuse_dist.ablation.rows import read_ablations
    from signfuse_dist.ablation.runs import make_plan

    if options.parameters:
        from signfuse_dist.preflight.parameters import count_rows

        print(count_rows(options.names, options.experiment, options.overrides))
        return 0
    plan = make_plan(
        read_ablations(options.names),
        options.experiment,
        options.overrides,
        options.seeds,
        options.split,
    )
    if options.plan:
        print(plan.describe())
        return 0
    if options.collect:
        _write_tables(plan)
        return 0
    return _run_rows(plan, options)


def _run_rows(plan: AblationPlan, options: argparse.Namespace) -> int:
    from signfuse_dist.ablation.workers import UnitRunner, link_all, make_units, share_cores
    from signfuse_dist.engine.stopping import REQUEUE
    from signfuse_dist.jobs.local import find_launch, launcher_environment

    launch = find_launch(options.launch, options.num_processes)
    for name, value in launcher_environment(launch).items():
        os.environ.setdefault(name, value)
    share_cores(options.parallel)
    link_all(plan)
    units = make_units(plan, launch)
    outcome = UnitRunner(units, options.parallel, options.task_id, options.num_tasks).run()
    if outcome.stopped:
        print("stopped; the same command goes on")
        return REQUEUE
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} left to other tasks; the last of them writes the tables")
        return 0
    _write_tables(plan)
    if outcome.failed:
        print(f"failed: {', '.join(outcome.failed)}; the same command tries again")
    return 1 if outcome.failed else 0


def _write_tables(plan: AblationPlan) -> None:
    from signfuse_dist.ablation.results import collect
    from signfuse_dist.ablation.tables import write_table

    for results in collect(plan):
        folder = plan.tables / results.ablation.name
        print(write_table(results, folder))
        print(f"-> {folder}\n")
