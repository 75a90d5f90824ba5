"""Trained models and translations: `evaluate`, `score`, `report`, `translate`, `serve`."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.evaluation.protocols import Preset

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
    from signfuse_dist.evaluation.scores import Results, format_scores, score_files, write_results
    from signfuse_dist.evaluation.significance import Resampling

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
    from signfuse_dist.evaluation.compare import compare, format_comparison, read_systems
    from signfuse_dist.evaluation.significance import SEED, Resampling
    from signfuse_dist.evaluation.translations import write_json

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
    from signfuse_dist.evaluation.protocols import find_preset

    if options.tokenizer is not None and options.preset != "sacrebleu":
        raise UserError(
            f"--tokenizer {options.tokenizer}: the tokens of the preset {options.preset!r} are "
            "part of its protocol; leave the option out"
        )
    return find_preset(options.preset, options.tokenizer)


def add_translate(commands: _Commands) -> None:
    """Add the subcommand `translate`."""
    command = commands.add_parser(
        "translate",
        help="translate new clips",
        description="Print one JSON line a video: its path, the translation and what there is to "
        "say of the clip. Videos that cannot be read are named on standard error.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")
    command.add_argument(
        "videos",
        type=Path,
        nargs="+",
        metavar="VIDEO",
        help="a video file, a folder of frames, or a folder of videos; write -- before names that "
        "begin with -",
    )
    command.add_argument(
        "--joints",
        type=Path,
        nargs="+",
        help="an .npz of joints for each video, in place of MediaPipe",
    )
    command.add_argument(
        "--nbest", type=int, default=1, help="translations a video (default: 1; at most the beams)"
    )
    command.add_argument(
        "--decoding",
        nargs="+",
        default=[],
        metavar="evaluation.key=value",
        help="other decoding than the run's, such as evaluation.num_beams=8",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="append the lines to this file; what it holds already is not done again",
    )
    command.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that decode and find joints (default: 0, none beside the model's)",
    )
    command.add_argument(
        "--folder-fps",
        type=float,
        help="rate of folders of frames, which have none of their own (default: data.fps)",
    )
    _add_pose_model(command)
    command.set_defaults(run=_translate)


def _translate(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.translate import Choices, translate_videos

    for name in ("nbest", "folder_fps"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    choices = Choices(
        options.joints,
        options.pose_model,
        options.folder_fps,
        options.nbest,
        options.decoding,
        options.workers,
        options.out,
    )
    return translate_videos(options.run_folder, options.videos, choices)


def add_serve(commands: _Commands) -> None:
    """Add the subcommand `serve`."""
    command = commands.add_parser(
        "serve",
        help="a web page to drop or record a clip and see its translation",
        description="Serve a page on this machine: the translation of a clip, the skeleton over "
        "the video, and the gate. Needs the extra `serve`. Uploads stay in a temporary folder.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: %(default)s, this machine alone; browsers record "
        "from other machines over https only)",
    )
    command.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    command.add_argument(
        "--max-seconds", type=float, default=60.0, help="longest clip (default: %(default)g)"
    )
    command.add_argument(
        "--max-megabytes", type=int, default=100, help="largest upload (default: %(default)s)"
    )
    command.add_argument(
        "--max-work-seconds",
        type=float,
        default=300.0,
        help="longest time for decoding a clip and finding its joints (default: %(default)g)",
    )
    _add_pose_model(command)
    command.set_defaults(run=_serve)


def _add_pose_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pose-model",
        type=Path,
        help="a holistic_landmarker.task, where mediapipe is 1.0 or newer",
    )


def _serve(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.translate import Limits
    from signfuse_dist.serve import Server, serve

    for name in ("max_seconds", "max_megabytes", "max_work_seconds"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0")
    if not _is_local(options.host):
        print(
            f"warning: --host {options.host} lets other machines use this page; it asks for no "
            "password",
            file=sys.stderr,
        )
    limits = Limits(options.max_seconds, options.max_work_seconds)
    server = Server(options.host, options.port, limits, options.max_megabytes)
    return serve(options.run_folder, server, options.pose_model)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add_evaluate(commands: _Commands) -> None:
    """Add the subcommand `evaluate`."""
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
    from signfuse_dist.evaluation.controls import chosen_controls
    from signfuse_dist.evaluation.evaluate import evaluate

    controls = chosen_controls(options.controls)
    evaluate(options.run_folder, options.split, options.overrides, controls)
    return 0


def add_report(commands: _Commands) -> None:
    """Add the subcommand `report`."""
    command = commands.add_parser(
        "report",
        help="write the report of an evaluated run",
        description="Write report.md and a self-contained report.html beside the scores.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")
    command.add_argument("--split", required=True, help="an evaluated split, such as test")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from signfuse_dist.report.report import write_report

    print(write_report(options.run_folder, options.split))
    return 0
