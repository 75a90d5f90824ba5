"""The command `signfuse`: its subcommands, exit statuses, and options made from dataclasses.

Only the subcommand that is used gets its options, because they come from the modules that take
them: `signfuse check` must not import torch. Exit statuses are those of
:mod:`signfuse_dist.answer`; a command line without a subcommand prints the whole help and ends
with 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from signfuse_dist import __version__
from signfuse_dist.garbage import importing

T = TypeVar("T")

# Name, the module of this package that has `add_NAME`, and the line in the help of `signfuse`.
SUBCOMMANDS = (
    ("check", "training", "show the resolved run, its batch plan, and what would end the job"),
    ("pack", "data", "pack the videos of a corpus into verified WebDataset shards"),
    ("pose", "data", "extract the joints of packed clips again, beside their frames"),
    ("features", "data", "a vector a frame beside packed splits, computed or published"),
    ("verify", "data", "check packed shards and name every fault"),
    ("stats", "data", "print and plot what a packed split holds"),
    ("show", "data", "draw a packed clip's frames with the skeleton over them"),
    ("train", "training", "train the stages in order, on this machine"),
    ("evaluate", "evaluation", "translate a split with a trained stage and score it"),
    ("score", "evaluation", "score anybody's translations"),
    ("compare", "evaluation", "compare systems on the same sentences, with p values"),
    ("report", "evaluation", "write the report of an evaluated run"),
    ("translate", "evaluation", "translate new clips"),
    ("serve", "evaluation", "serve a web page that translates a clip"),
    ("ablate", "training", "train and compare the rows of an ablation (section 5.4)"),
)

_FIRST_STEPS = """\
first steps:
  make demo          in a clone: a whole run on a drawn corpus, without a GPU
  signfuse pack table --root TABLE.tsv --split train --out shards/NAME/train
  signfuse check NAME --world-size 4        NAME is a file of configs/experiment
  signfuse train NAME
  signfuse evaluate runs/NAME/finetune --split test
  signfuse report runs/NAME/finetune --split test

Each subcommand has its own --help. The README leads through all of them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status.

    Args:
        arguments: the command line after `signfuse`; None takes this process's.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        from signfuse_dist.answer import answer
    except KeyboardInterrupt:  # before anybody is there who answers it
        print("interrupted", file=sys.stderr)
        return 130
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = build_parser(next((word for word in arguments if not word.startswith("-")), ""))
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parse(parser, arguments)
    return int(options.run(options))


def build_parser(used: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all subcommands.

    Args:
        used: the subcommand that gets its options; None: each.
    """
    parser = argparse.ArgumentParser(
        prog="signfuse",
        description="Gloss-free sign language translation with SignFuse: pack videos into shards, "
        "train the three stages, score the translations, write a report, translate new clips.",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"signfuse {__version__}")
    commands = parser.add_subparsers(title="subcommands", required=True, metavar="COMMAND")
    for name, module, line in SUBCOMMANDS:
        command = commands.add_parser(name, help=line)
        if used in (None, name):
            with importing():
                add = getattr(importlib.import_module(f"signfuse_dist.cli.{module}"), f"add_{name}")
                add(command)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; ``section.key=value`` may stand before and after the options.

    argparse gives a positional list only what follows the first positional.
    """
    options, left = parser.parse_known_args(arguments)
    if left and (not hasattr(options, "overrides") or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides = [*options.overrides, *left]
    return options


def add_options(command: argparse.ArgumentParser, record: type, *names: str) -> None:
    """Add an option for each field of a dataclass whose metadata has a ``help``.

    The field `num_tasks` becomes `--num-tasks`. Type, choices (of a ``Literal``) and number of
    values (of a sequence) come from the field's type; without a default the option is required; a
    ``bool`` is a flag. The metadata may hold more of what ``add_argument`` takes, such as
    ``metavar``.

    Args:
        names: the fields that become options; none given: all that have a ``help``.
    """
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        if "help" in field.metadata and (not names or field.name in names):
            flag = "--" + field.name.replace("_", "-")
            command.add_argument(flag, **_argument(field, hints[field.name]))


def from_options(record: type[T], options: argparse.Namespace, **others: Any) -> T:
    """Return the dataclass from its options (:func:`add_options`) and its ``others`` fields."""
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    named = {f.name: getattr(options, f.name) for f in fields if "help" in f.metadata}
    return record(**{**named, **others})


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Return what ``add_argument`` is given for a field."""
    if hint is bool:
        return {"action": "store_true", **field.metadata}
    argument: dict[str, Any] = {"required": True}
    if field.default is not dataclasses.MISSING:
        argument = {"default": field.default}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) not in (None, Literal) and "type" not in field.metadata:
        argument["nargs"], hint = "*", typing.get_args(hint)[0]  # a sequence
    if typing.get_origin(hint) is Literal:
        argument["choices"], hint = typing.get_args(hint), str
    return {**argument, "type": hint, **field.metadata}


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an option such as 64,128."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e
