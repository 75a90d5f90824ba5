"""The command `signfuse`. Each subcommand imports what it needs, so `check` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from signfuse_dist.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status of :func:`answer`."""
    return answer(parse(build_parser(), arguments))


def answer(options: argparse.Namespace) -> int:
    """Run what the options ask for; return the exit status: 0, 1 (faults), 2 (a user's error)."""
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; ``section.key=value`` may stand before and after the options.

    argparse gives a positional list only the words that follow the first positional.
    """
    options, left = parser.parse_known_args(arguments)
    if left and (not hasattr(options, "overrides") or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides = [*options.overrides, *left]
    return options


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an option such as 64,128."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every subcommand."""
    from signfuse_dist.cli import data, evaluation, training

    parser = argparse.ArgumentParser(
        prog="signfuse",
        description="Train and try SignFuse: pack videos, train three stages, evaluate, translate.",
        epilog="A first run: make demo. Each subcommand has its own --help.",
    )
    commands = parser.add_subparsers(title="subcommands", required=True, metavar="COMMAND")
    for add in (
        training.add_check,
        data.add_pack,
        data.add_pose,
        data.add_verify,
        data.add_stats,
        data.add_show,
        training.add_train,
        evaluation.add_evaluate,
        evaluation.add_score,
        evaluation.add_compare,
        evaluation.add_report,
        evaluation.add_translate,
        evaluation.add_serve,
        training.add_ablate,
    ):
        add(commands)
    return parser
