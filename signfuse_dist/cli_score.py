"""The subcommands that score translations: `score` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.evaluation.presets import Preset

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_score(commands: _Commands) -> None:
    """Add the subcommand `score`."""
    command = commands.add_parser(
        "score",
        help="score anybody's translations",
        description="Score hypotheses against references; every figure carries its signature.",
    )
    command.add_argument(
        "--hypotheses",
        type=Path,
        required=True,
        help="JSON lines, TSV with a header, or one sentence a line",
    )
    _add_protocol(command)
    command.add_argument(
        "--intervals", action="store_true", help="give 95%% intervals by bootstrap as well"
    )
    command.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.metrics import format_scores, score_files
    from signfuse_dist.evaluation.resampling import Resampling
    from signfuse_dist.evaluation.results import Results, write_results

    scores = score_files(
        options.hypotheses,
        options.references,
        _preset(options),
        options.language,
        allow_empty=options.allow_empty,
        resampling=Resampling() if options.intervals else None,
        bleurt=options.bleurt,
    )
    print(format_scores(scores))
    if options.json is not None:
        write_results(options.json, Results(scores))
    return 0


def add_compare(commands: _Commands) -> None:
    """Add the subcommand `compare`."""
    command = commands.add_parser(
        "compare",
        help="compare systems on the same sentences, with intervals and p values",
        description="Score runs or files of translations of the same sentences, and test each "
        "against the first by sacrebleu's paired tests.",
    )
    command.add_argument(
        "systems",
        type=Path,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="evaluated runs (runs/EXPERIMENT/STAGE) or files as for `score`; the first is the "
        "baseline",
    )
    command.add_argument("--split", help="which split of the runs, such as test")
    _add_protocol(command)
    command.add_argument(
        "--method",
        choices=("bootstrap", "randomization"),
        default="bootstrap",
        help="the paired test (default: %(default)s)",
    )
    command.add_argument(
        "--num-samples", type=int, help="resamples (default: 1000) or random trials (10000)"
    )
    command.add_argument("--seed", type=int, help="of the resampling (default: sacrebleu's 12345)")
    command.add_argument(
        "--seeds",
        action="store_true",
        help="give mean and deviation over runs that differ in train.seed alone",
    )
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.compare import compare, format_comparison
    from signfuse_dist.evaluation.files import write_json
    from signfuse_dist.evaluation.resampling import SEED, Resampling
    from signfuse_dist.evaluation.systems import read_systems

    if len(options.systems) < 2:
        raise UserError("a comparison needs two systems at least; `signfuse score` scores one")
    preset = _preset(options)
    how = Resampling(
        options.method, options.num_samples, SEED if options.seed is None else options.seed
    )
    systems = read_systems(options.systems, options.split, options.references, options.allow_empty)
    found = compare(
        systems, preset, how, language=options.language, bleurt=options.bleurt, seeds=options.seeds
    )
    print(format_comparison(found))
    if options.json is not None:
        write_json(options.json, found.to_dict())
    return 0


def _add_protocol(command: argparse.ArgumentParser) -> None:
    """Add the options that say against what, and how, is scored."""
    command.add_argument(
        "--references",
        type=Path,
        help="a file of the same kinds; not needed where the hypotheses' file holds references",
    )
    command.add_argument(
        "--preset",
        required=True,
        help="sacrebleu, neccam, twostream, twostream-char, unisign or char (see "
        "docs/evaluation.md)",
    )
    command.add_argument(
        "--tokenizer",
        choices=("13a", "zh", "char"),
        help="of the preset sacrebleu, whose tokens are not part of a protocol (default: 13a)",
    )
    command.add_argument(
        "--language",
        metavar="TAG",
        help="of the text, such as de: METEOR takes English synonyms for English and unknown text",
    )
    command.add_argument(
        "--bleurt", type=Path, metavar="FOLDER", help="a checkpoint, where `bleurt` is installed"
    )
    command.add_argument(
        "--allow-empty", action="store_true", help="score empty hypotheses as they are"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")


def _preset(options: argparse.Namespace) -> Preset:
    from signfuse_dist.evaluation.presets import find_preset

    if options.tokenizer is not None and options.preset != "sacrebleu":
        raise UserError(
            f"--tokenizer {options.tokenizer}: the tokens of the preset {options.preset!r} are "
            "part of its protocol; leave the option out"
        )
    return find_preset(options.preset, options.tokenizer)
