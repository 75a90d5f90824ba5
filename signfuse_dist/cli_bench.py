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
    for add in (_add_memory, _add_parameters):
        add(whats)


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, such as model=llama2_7b",
    )


def _add_memory(whats: _Commands) -> None:
    command = whats.add_parser(
        "memory",
        help="peak memory of the encoders over clip lengths and chunk sizes",
        description="Run a forward and backward pass for each length: the ResNet whole, recomputed "
        "by blocks, and in chunks of frames; and the options at the largest length. Prints what a "
        "pass adds to model, gradients and batch at rest, and its time. Frames are drawn; no data "
        "and no LLM is read.",
    )
    _add_experiment(command)
    command.add_argument(
        "--part",
        choices=("visual", "step"),
        default="visual",
        help="the visual stream alone, or a step of the contrastive stage (default: %(default)s)",
    )
    command.add_argument(
        "--frames", type=_numbers, default=(16, 32, 64), metavar="T,T,...",
        help="frames a clip (default: 16,32,64)",
    )  # fmt: skip
    command.add_argument(
        "--chunks", type=_numbers, default=(4, 8), metavar="N,N,...",
        help="frames at once (default: 4,8)",
    )  # fmt: skip
    command.add_argument(
        "--options", nargs="*", choices=("channels_last", "bf16", "compile"),
        default=("channels_last", "bf16", "compile"),
        help="also tried at the largest length (default: all three)",
    )  # fmt: skip
    command.add_argument("--clips", type=int, default=1, help="default: %(default)s")
    command.add_argument("--threads", type=int, default=1, help="of a CPU (default: %(default)s)")
    command.set_defaults(run=_memory)


def _memory(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.memory import MemoryBench, run

    bench = MemoryBench(
        options.experiment, options.overrides, options.part, options.frames, options.chunks,
        options.options, options.clips, options.threads,
    )  # fmt: skip
    print(run(bench))
    return 0


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


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e
