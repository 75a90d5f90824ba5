"""The parser of `signfuse ablate`. It imports what it needs when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.cli_pose import add_tasks
from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.ablation.planning import Plan

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


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
        "overrides", nargs="*", metavar="section.key=value",
        help="what differs from the files, in every row",
    )  # fmt: skip
    command.add_argument(
        "--seeds", type=_seeds, default=(0,), metavar="N,N,...",
        help="each row is trained once with each seed (default: 0)",
    )  # fmt: skip
    command.add_argument("--split", help="scored (default: data.dev_split, as the paper asks)")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="only print the runs, what is shared, and their steps"
    )
    what.add_argument(
        "--collect", action="store_true", help="only write the tables of what is finished"
    )
    command.add_argument(
        "--launch", type=Path,
        help="a file of launch/ (default: node_zero2.yaml with a GPU, cpu_zero2.yaml without)",
    )  # fmt: skip
    command.add_argument("--num-processes", type=int, help="instead of the launch file's")
    command.add_argument(
        "--parallel", type=int, default=1,
        help="runs at once, for CPUs: on GPUs they would meet on the same ones (default: 1)",
    )  # fmt: skip
    add_tasks(command)
    command.set_defaults(run=_ablate)


def _ablate(options: argparse.Namespace) -> int:
    from signfuse_dist.ablation.definition import read_ablations
    from signfuse_dist.ablation.planning import make_plan

    plan = make_plan(
        read_ablations(options.names), options.experiment, options.overrides, options.seeds,
        options.split,
    )  # fmt: skip
    if options.plan:
        print(plan.describe())
        return 0
    if options.collect:
        _write_tables(plan)
        return 0
    return _work(plan, options)


def _work(plan: Plan, options: argparse.Namespace) -> int:
    from signfuse_dist.ablation.running import link_all, make_units, share_cores
    from signfuse_dist.ablation.work import Work
    from signfuse_dist.engine.signals import REQUEUE
    from signfuse_dist.launching import find_launch

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
    from signfuse_dist.ablation.collect import collect
    from signfuse_dist.ablation.table import write_table

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
