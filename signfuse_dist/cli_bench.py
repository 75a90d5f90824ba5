"""The subcommand `bench`: one word for each part of the system that is measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_bench(commands: _Commands) -> None:
    """Add the subcommand `bench` with its own subcommands."""
    command = commands.add_parser(
        "bench",
        help="measure a part of the system against what it could be",
        description="Measure one part of the system on this machine, and print a table.",
    )
    parts = command.add_subparsers(
        title="what to measure", required=True, metavar="WHAT", help="each has its own --help"
    )
    for add in (_add_pack,):
        add(parts)


def _add_pack(parts: _Commands) -> None:
    command = parts.add_parser(
        "pack",
        help="packing: against a bare loop, on two workers, with pose",
        description="Compare packing with a bare loop of decoding, resizing and JPEG encoding, two "
        "workers with one, and with --pose the time inside MediaPipe with all time. Takes about "
        "two minutes, with pose about six, and wants an idle machine.",
    )
    command.add_argument(
        "--root",
        type=Path,
        metavar="TABLE",
        help="clips to measure with, a TSV with rows of split train (default: one drawn video)",
    )
    command.add_argument("--pose", action="store_true", help="measure with MediaPipe as well")
    command.add_argument(
        "--pose-model",
        type=Path,
        help="a holistic_landmarker.task for mediapipe 1.0 or newer",
    )
    command.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.pack import BenchConfig, bench_pack

    print(bench_pack(BenchConfig(options.root, options.pose, options.pose_model)))
    return 0
