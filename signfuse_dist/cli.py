"""The command `signfuse`. Each subcommand imports what it needs, so `check` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.cli_ablate import add_ablate
from signfuse_dist.cli_bench import add_bench
from signfuse_dist.cli_check import add_check, add_run
from signfuse_dist.cli_look import add_show, add_stats
from signfuse_dist.cli_pose import add_division, add_extractor, add_pose, chosen_extractor
from signfuse_dist.cli_score import add_compare, add_score
from signfuse_dist.cli_translate import add_serve, add_translate
from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status: 0, 1 (faults were found), 2 (a user's error)."""
    options = _parse(arguments)
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; ``section.key=value`` may stand before and after the options.

    argparse gives a positional list only the words that follow the first positional.
    """
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if left and (not hasattr(options, "overrides") or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides = [*options.overrides, *left]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="signfuse",
        description="Train and try SignFuse: pack videos, train three stages, evaluate, translate.",
        epilog="A first run: make demo. Each subcommand has its own --help.",
    )
    commands = parser.add_subparsers(title="subcommands", required=True, metavar="COMMAND")
    for add in (
        add_check,
        _add_pack,
        add_pose,
        _add_verify,
        add_stats,
        add_show,
        _add_train,
        _add_evaluate,
        add_score,
        add_compare,
        _add_report,
        add_translate,
        add_serve,
        add_ablate,
        add_bench,
    ):
        add(commands)
    return parser


def _add_pack(commands: _Commands) -> None:
    from signfuse_dist.data.manifest import PackConfig

    default = PackConfig()
    command = commands.add_parser(
        "pack",
        help="pack the videos of a corpus into verified WebDataset shards",
        description="Decode, resize, extract joints and write shards. Interrupted, run it again: "
        "finished shards are kept. Rows that cannot be packed are named in dropped.tsv, and what "
        "is annotated or on the disk alone in orphans.tsv.",
    )
    command.add_argument(
        "corpus",
        help="`table` (ROOT is a TSV), `synthetic` (ROOT is a folder, drawn when empty), "
        "`phoenix14t`, `csl_daily`, `how2sign` or `how2sign_precut` (ROOT is the unpacked "
        "folder); each has a page in shards/",
    )
    command.add_argument("--root", type=Path, required=True, help="the table, or the folder")
    command.add_argument("--split", required=True, help="which rows: train, dev (val) or test")
    command.add_argument("--out", type=Path, required=True, help="the split's own folder")
    add_division(command)
    command.add_argument(
        "--fps",
        type=float,
        default=default.fps,
        help="stored frames a second (default: each video's own rate, or the corpus's)",
    )
    command.add_argument(
        "--frame-size",
        type=int,
        default=default.frame_size,
        help="side of the stored square in pixels (default: %(default)s)",
    )
    command.add_argument(
        "--jpeg-quality", type=int, default=default.jpeg_quality, help="default: %(default)s"
    )
    command.add_argument(
        "--clips-per-shard", type=int, default=default.clips_per_shard, help="default: %(default)s"
    )
    add_extractor(command, ("mediapipe", "none"))
    command.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    from signfuse_dist.data.manifest import PackConfig
    from signfuse_dist.data.pack import pack

    config = PackConfig(
        frame_size=options.frame_size,
        fps=options.fps,
        jpeg_quality=options.jpeg_quality,
        clips_per_shard=options.clips_per_shard,
    )
    summary = pack(
        options.corpus,
        options.root,
        options.split,
        options.out,
        config,
        options.workers,
        options.task_id,
        options.num_tasks,
        chosen_extractor(options),
    )
    print(summary)
    return 0


def _add_verify(commands: _Commands) -> None:
    command = commands.add_parser(
        "verify",
        help="check packed shards and name every fault",
        description="Check checksums, indexes, JPEGs, lengths and joints of a packed split. Where "
        "nothing is wrong, verified.json beside the manifest says so to `signfuse check`.",
    )
    command.add_argument("folder", help="folder or address of a split, or of a pose set")
    command.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    command.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from signfuse_dist.data.stamp import remove_stamp, write_stamp
    from signfuse_dist.data.storage import open_folder
    from signfuse_dist.data.verify import verify

    folder = open_folder(options.folder)
    faults = verify(folder, options.workers)
    if faults:
        remove_stamp(folder)
    elif not write_stamp(folder):
        print(f"{options.folder}: cannot be written to, so `signfuse check` will not know of this")
    for fault in faults:
        print(fault)
    print(f"{options.folder}: {len(faults)} faults" if faults else f"{options.folder}: whole")
    return 1 if faults else 0


def _add_train(commands: _Commands) -> None:
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
    from signfuse_dist.launching import train_stages

    return train_stages(
        options.experiment, options.overrides, options.launch, options.num_processes
    )


def _add_evaluate(commands: _Commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="translate a split with a trained stage and score it",
        description="Decode deterministically and write hypotheses.jsonl and scores.json into "
        "RUN/evaluation/SPLIT. Under `accelerate launch -m signfuse_dist.cli evaluate ...` the "
        "work is shared by all processes; the result is the same. Interrupted, run it again: "
        "finished batches are kept.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="evaluation.key=value",
        help="other decoding than the run's, such as evaluation.num_beams=8",
    )
    command.add_argument("--split", required=True, help="the packed split's name, such as test")
    command.add_argument(
        "--controls",
        default="shuffled,blank,masked_joints",
        help="which are scored as well, with commas, or none (default: %(default)s); blank and "
        "masked_joints take as long again each as the split itself",
    )
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.control import chosen_controls
    from signfuse_dist.evaluation.decode import evaluate

    controls = chosen_controls(options.controls)
    evaluate(options.run_folder, options.split, options.overrides, controls)
    return 0


def _add_report(commands: _Commands) -> None:
    command = commands.add_parser(
        "report",
        help="write the report of an evaluated run",
        description="Write report.md and a self-contained report.html beside the scores.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")
    command.add_argument("--split", required=True, help="an evaluated split, such as test")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.report import write_report

    print(write_report(options.run_folder, options.split))
    return 0


if __name__ == "__main__":
    sys.exit(main())
