"""What comes before and around training: `check`, `train` and `ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.cli.data import add_tasks
from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.ablation.runs import Plan

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_run(command: argparse.ArgumentParser) -> None:
    """Add what names a run: an experiment, and words that override."""
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, such as stage.epochs=3 or model=smollm2_135m",
    )


def add_check(commands: _Commands) -> None:
    """Add the subcommand."""
    command = commands.add_parser(
        "check",
        help="show the resolved run and its batch plan, and find what would end the job",
        description="Resolve an experiment, print the plan, and look at what a job needs: shards, "
        "LLM, weights, disk, memory of a GPU, attention, launch file, port, packages. Everything "
        "is reported together, with what to do. Imports no torch. Status 1: an error was found.",
    )
    add_run(command)
    command.add_argument("--world-size", type=int, required=True, help="number of processes")
    command.add_argument("--launch", type=Path, help="the file of launch/ that will be used")
    command.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GB",
        help="memory of one GPU where the job will run (default: this machine's, where it has one)",
    )
    command.add_argument(
        "--parameters",
        action="store_true",
        help="build the model without memory and count its parameters (this imports torch)",
    )
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from signfuse_dist.errors import raise_together
    from signfuse_dist.preflight import check
    from signfuse_dist.preflight.check import examine
    from signfuse_dist.preflight.finding import summary

    told = check.describe(options.experiment, options.overrides, options.world_size)
    found = examine(told.runs, told.plans, options.launch, options.world_size, options.gpu_memory)
    print(told.text)
    print(summary(found))
    raise_together(
        told.errors,
        f"{options.experiment} on {options.world_size} processes cannot run",
    )
    if options.parameters:
        from signfuse_dist.preflight.parameters import describe

        print(describe(options.experiment, options.overrides))
    return 1 if any(finding.level == "error" for finding in found) else 0


def add_ablate(commands: _Commands) -> None:
    """Add the subcommand `ablate`."""
    command = commands.add_parser(
        "ablate",
        help="train, score and compare the rows of an ablation (the paper's section 5.4)",
        description="Train what the rows need, each shared run once, score every row and write "
        "tables and charts into OUTPUT/ablation/tables. Interrupted, run it again: what is "
        "finished is kept and what was stopped goes on. Several tasks, on one machine or as an "
        "array job, share the work.",
    )
    command.add_argument(
        "names", metavar="NAME", help="files of configs/ablation or paths, with commas; or `all`"
    )
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, in every row",
    )
    command.add_argument(
        "--seeds",
        type=_seeds,
        default=(0,),
        metavar="N,N,...",
        help="each row is trained once with each seed (default: 0)",
    )
    command.add_argument("--split", help="scored (default: data.dev_split, as the paper asks)")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="only print the runs, what is shared, and their steps"
    )
    what.add_argument(
        "--collect", action="store_true", help="only write the tables of what is finished"
    )
    what.add_argument(
        "--parameters",
        action="store_true",
        help="only count the parameters of every row, from models without memory",
    )
    command.add_argument(
        "--launch",
        type=Path,
        help="a file of launch/ (default: node_zero2.yaml with a GPU, cpu_zero2.yaml without)",
    )
    command.add_argument("--num-processes", type=int, help="instead of the launch file's")
    command.add_argument(
        "--parallel",
        type=int,
        default=1,
        help="runs at once, for CPUs: on GPUs they would meet on the same ones (default: 1)",
    )
    add_tasks(command)
    command.set_defaults(run=_ablate)


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
    return _work(plan, options)


def _work(plan: Plan, options: argparse.Namespace) -> int:
    from signfuse_dist.ablation.workers import Work, link_all, make_units, share_cores
    from signfuse_dist.engine.stopping import REQUEUE
    from signfuse_dist.jobs.local import find_launch

    launch = find_launch(options.launch, options.num_processes)
    share_cores(options.parallel)
    link_all(plan)
    units = make_units(plan, launch, options.num_processes)
    outcome = Work(units, options.parallel, options.task_id, options.num_tasks).run()
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


def _write_tables(plan: Plan) -> None:
    from signfuse_dist.ablation.tables import collect, write_table

    for results in collect(plan):
        folder = plan.tables / results.ablation.name
        print(write_table(results, folder))
        print(f"-> {folder}\n")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e
    if min(seeds) < 0:
        raise UserError(f"--seeds {text}: a seed is 0 or more")
    return seeds


def add_train(commands: _Commands) -> None:
    """Add the subcommand `train`."""
    command = commands.add_parser(
        "train",
        help="train the stages in order, on this machine",
        description="Run `accelerate launch -m signfuse_dist.train` for each stage in order. "
        "Finished stages are skipped and a stopped one goes on where it was. For one stage, "
        "another launcher or a cluster, see the README and slurm/.",
    )
    add_run(command)
    command.add_argument(
        "--launch",
        type=Path,
        help="a file of launch/ (default: node_zero2.yaml with a GPU, cpu_zero2.yaml without)",
    )
    command.add_argument("--num-processes", type=int, help="instead of the launch file's")
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from signfuse_dist.jobs.local import train_stages

    return train_stages(
        options.experiment, options.overrides, options.launch, options.num_processes
    )
