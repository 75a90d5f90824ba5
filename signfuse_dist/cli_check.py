"""`signfuse check`: the resolved run, its plan, and what would end the job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from signfuse_dist import check
    from signfuse_dist.errors import raise_together
    from signfuse_dist.preflight.examine import examine
    from signfuse_dist.preflight.finding import summary

    told = check.describe(options.experiment, options.overrides, options.world_size)
    found = examine(
        told.runs, told.plans, options.launch, options.world_size, options.gpu_memory
    )  # fmt: skip
    print(told.text)
    print(summary(found))
    raise_together(
        told.errors,
        f"{options.experiment} on {options.world_size} processes cannot run",
    )
    if options.parameters:
        print(check.count(options.experiment, options.overrides))
    return 1 if any(finding.level == "error" for finding in found) else 0
