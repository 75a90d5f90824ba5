"""The parsers of `signfuse bench WHAT`. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_bench(commands: _Commands) -> None:
    """Add the subcommand `bench` and what it can measure."""
    command = commands.add_parser(
        "bench",
        help="measure a part of the system on this machine",
        description="Measure a part of the system on this machine; the figures go to standard "
        "output.",
    )
    whats = command.add_subparsers(title="what", required=True, metavar="WHAT")
    for add in (_add_parameters,):
        add(whats)


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, such as model=llama2_7b",
    )


def _add_parameters(whats: _Commands) -> None:
    command = whats.add_parser(
        "parameters",
        help="count the parameters of every variant of the paper's section 5.4",
        description="Build every variant of the experiment's model without memory and count the "
        "parameters of its components. Reads the LLM's configuration, and no data.",
    )
    _add_experiment(command)
    command.set_defaults(run=_parameters)


def _parameters(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.parameters import count_variants

    print(count_variants(options.experiment, options.overrides))
    return 0
