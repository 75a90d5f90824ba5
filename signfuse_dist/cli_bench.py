"""The parsers of `signfuse bench WHAT`. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from signfuse_dist.config import ModelConfig

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
    for add in (_add_attention,):
        add(whats)


def _add_attention(whats: _Commands) -> None:
    command = whats.add_parser(
        "attention",
        help="time and peak memory of each attention backend over the clips' length",
        description="Run forward and backward passes of attention with padding, for every backend "
        "that is here, and say why the others are not.",
    )
    command.add_argument(
        "--lengths", type=_numbers, default=(64, 128, 256, 512), metavar="T,T,...",
        help="steps of the longest clip, as in 64,128 (default: 64,128,256,512)",
    )  # fmt: skip
    command.add_argument("--batch-size", type=int, default=8, help="clips (default: %(default)s)")
    command.add_argument("--dim", type=int, default=ModelConfig.dim, help="default: %(default)s")
    command.add_argument(
        "--heads", type=int, default=ModelConfig.num_heads, help="default: %(default)s"
    )
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: bfloat16 on a GPU, float32 on a CPU",
    )  # fmt: skip
    command.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    command.add_argument(
        "--repeats", type=int, default=10, help="passes that are timed (default: %(default)s)"
    )
    command.set_defaults(run=_attention)


def _attention(options: argparse.Namespace) -> int:
    import torch

    from signfuse_dist.bench.attention import AttentionBench, run
    from signfuse_dist.errors import UserError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    gpu = options.device == "cuda" or (options.device is None and torch.cuda.is_available())
    bench = AttentionBench(
        lengths=options.lengths,
        batch_size=options.batch_size,
        dim=options.dim,
        num_heads=options.heads,
        dtype=getattr(torch, options.dtype or ("bfloat16" if gpu else "float32")),
        device=torch.device("cuda" if gpu else "cpu"),
        repeats=options.repeats,
    )
    print(run(bench))
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e
