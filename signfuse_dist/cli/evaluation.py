"""What is done with a trained model, and with translations.

`evaluate`, `score`, `compare`, `report`, `translate` and `serve`.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from signfuse_dist.cli import add_options, from_options
from signfuse_dist.cli.data import add_pose_model
from signfuse_dist.errors import UserError, suggest
from signfuse_dist.evaluation.protocols import PRESETS, Preset, find_preset
from signfuse_dist.garbage import importing

if TYPE_CHECKING:
    from signfuse_dist.report.published import Published


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Describe `evaluate` and add its options."""
    command.description = (
        "Decode deterministically and write hypotheses.jsonl and scores.json into "
        "RUN/evaluation/SPLIT, or SPLIT@NAME with --name. Under `accelerate launch -m "
        "signfuse_dist.cli evaluate ...` the work is shared by all processes; the result is the "
        "same. Interrupted, run it again: finished batches are kept. An evaluation that is there "
        "is never overwritten by one with other settings."
    )
    _add_run_folder(command)
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="evaluation.key=value",
        help="other decoding than the run's, such as evaluation.num_beams=8; and data.stage_to="
        "DIR, a folder of the node's own disk from which the shards are read",
    )
    command.add_argument("--split", required=True, help="the packed split's name, such as test")
    command.add_argument(
        "--name", help="of an evaluation beside that of the run's own settings, such as beams8"
    )
    command.add_argument(
        "--corpus",
        metavar="NAME",
        help="one of the run's data.blend, whose split is meant: written into SPLIT@NAME (default: "
        "the run's own)",
    )
    command.add_argument(
        "--controls",
        default="shuffled,blank,masked_joints",
        help="which are scored as well, with commas, or none (default: %(default)s); one more "
        "is moved, every clip smaller and elsewhere in the picture. All but shuffled take as long "
        "again each as the split itself",
    )
    command.set_defaults(run=_evaluate)


def add_score(command: argparse.ArgumentParser) -> None:
    """Describe `score` and add its options."""
    command.description = "Score hypotheses against references; every figure carries its signature."
    command.add_argument(
        "--hypotheses",
        type=Path,
        required=True,
        help="JSON lines (.jsonl), a JSON list (.json), a table (.tsv, .csv, .xlsx), one sentence "
        "a line (.txt), or an evaluated run or evaluation",
    )
    command.add_argument("--split", help="which split of a run, such as test")
    add_options(command, Protocol)
    command.add_argument(
        "--intervals", action="store_true", help="give 95%% intervals by bootstrap as well"
    )
    command.add_argument(
        "--trained",
        type=Path,
        metavar="TEXTS",
        help="texts of training, to score the other sentences apart: a packed split, a table with "
        "a column `text`, or a .txt of a sentence a line (an evaluation has them in its scores)",
    )
    command.set_defaults(run=_score)


def add_compare(command: argparse.ArgumentParser) -> None:
    """Describe `compare` and add its options."""
    from signfuse_dist.evaluation.significance import Resampling

    command.description = (
        "Score runs or files of translations of the same sentences, and test each against the "
        "first by sacrebleu's paired tests."
    )
    command.add_argument(
        "systems",
        type=Path,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="evaluated runs (runs/EXPERIMENT/STAGE), evaluations (RUN/evaluation/SPLIT@NAME) or "
        "files as for `score`; the first is the baseline",
    )
    command.add_argument("--split", help="which split of the runs, such as test")
    add_options(command, Protocol)
    add_options(command, Resampling)
    command.add_argument(
        "--seeds",
        action="store_true",
        help="give mean and deviation over runs that differ in train.seed alone",
    )
    command.add_argument(
        "--published",
        metavar="CORPUS",
        help="put the systems, or a single one, among the published results of a corpus, such as "
        "how2sign",
    )
    command.add_argument(
        "--baselines",
        type=Path,
        metavar="FILE",
        help="results of your own beside the published ones, a file of the form of "
        "signfuse_dist/report/published.yaml",
    )
    command.set_defaults(run=_compare)


def add_report(command: argparse.ArgumentParser) -> None:
    """Describe `report` and add its options."""
    command.description = "Write report.md and a self-contained report.html beside the scores."
    _add_run_folder(command)
    command.add_argument("--split", required=True, help="an evaluated split, such as test")
    command.add_argument("--name", help="that of the evaluation, where it was given one")
    command.set_defaults(run=_report)


def add_translate(command: argparse.ArgumentParser) -> None:
    """Describe `translate` and add its options."""
    from signfuse_dist.evaluation.choices import Choices

    command.description = (
        "Print one JSON line a video: its path, the translation and what there is to say of the "
        "clip. Videos that cannot be read are named on standard error."
    )
    _add_model(command)
    command.add_argument(
        "videos",
        type=Path,
        nargs="+",
        metavar="VIDEO",
        help="a video file, a folder of frames, joints alone (.pose, .npz, .npy, .parquet, .pkl, "
        "or a folder of OpenPose's frames), or a folder of videos or of joints; write -- before "
        "names that begin with -",
    )
    add_options(command, Choices)
    add_pose_model(command)
    command.set_defaults(run=_translate)


def add_serve(command: argparse.ArgumentParser) -> None:
    """Describe `serve` and add its options."""
    from signfuse_dist.evaluation.choices import Limits, Server

    command.description = (
        "Serve a page on this machine: the translation of a clip, the skeleton over the video, "
        "and the gate. Needs the extra `serve`. Uploads stay in a temporary folder."
    )
    _add_model(command)
    add_options(command, Server)
    add_options(command, Limits)
    add_pose_model(command)
    command.set_defaults(run=_serve)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Against what translations are scored, and how: options of `score` and `compare`."""

    references: list[Path] | None = field(
        default=None,
        metadata={
            "action": "append",
            "type": Path,
            "metavar": "FILE",
            "help": "a file of the same kinds; not needed where the hypotheses' file holds "
            "references; more than once: further references of the same sentences",
        },
    )
    preset: str = field(metadata={"help": f"{', '.join(PRESETS)} (see docs/evaluation.md)"})
    tokenizer: Literal["13a", "zh", "char"] | None = field(
        default=None,
        metadata={
            "help": "of the preset sacrebleu, whose tokens are not part of a protocol "
            "(default: 13a)"
        },
    )
    language: str | None = field(
        default=None,
        metadata={
            "metavar": "TAG",
            "help": "of the text, such as de: METEOR takes English synonyms for English and "
            "unknown text",
        },
    )
    bleurt: Path | None = field(
        default=None,
        metadata={
            "metavar": "FOLDER",
            "help": "a checkpoint of transformers, or one of the package `bleurt` where that is "
            "installed",
        },
    )
    allow_empty: bool = field(
        default=False, metadata={"help": "score empty hypotheses as they are"}
    )
    json: Path | None = field(
        default=None, metadata={"metavar": "FILE", "help": "write the figures as JSON too"}
    )

    def find_preset(self) -> Preset:
        """Return the preset that is asked for. Raises UserError for none, or other tokens."""
        if self.tokenizer is not None and self.preset != "sacrebleu":
            raise UserError(
                f"--tokenizer {self.tokenizer}: the tokens of the preset {self.preset!r} are "
                "part of its protocol; leave the option out"
            )
        return find_preset(self.preset, self.tokenizer)


def _add_run_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", type=Path, metavar="RUN", help="runs/EXPERIMENT/STAGE")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="runs/EXPERIMENT/STAGE, the folder of a model, or a name of the model hub, OWNER/NAME",
    )


def _evaluate(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.asked import ask
    from signfuse_dist.evaluation.controls import chosen_controls
    from signfuse_dist.evaluation.scores import format_split_scores
    from signfuse_dist.run_folder import EvaluationFolder

    run_folder, split, name = options.run_folder, options.split, options.name
    controls = chosen_controls(options.controls)
    words = (run_folder, split, options.overrides, controls, name, options.corpus)
    asked = ask(*words)
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started
    if asked.is_answered and asked.finished is not None:
        folder = asked.folder
        if is_main:
            print(f"{folder.path}: already evaluated\n\n{format_split_scores(asked.finished)}")
    else:
        from signfuse_dist.evaluation.evaluate import evaluate

        folder = EvaluationFolder(evaluate(*words))
    if is_main:
        from signfuse_dist.report.report import is_older

        if is_older(folder):
            _, _, name = folder.path.name.partition("@")
            named = f" --name {shlex.quote(name)}" if name else ""
            which = f"{shlex.quote(str(run_folder))} --split {shlex.quote(split)}{named}"
            print(
                f"\n{folder.report_html} is older than these scores; write it anew: "
                f"signfuse report {which}"
            )
    return 0


def _score(options: argparse.Namespace) -> int:
    read = (options.hypotheses, *(options.references or ()), options.trained)
    _refuse_absent(*read)
    _refuse_json_place(options.json, *read)
    with importing():
        from signfuse_dist.evaluation.scores import (
            SplitScores,
            format_split_scores,
            score_files,
            write_split_scores,
        )
        from signfuse_dist.evaluation.significance import Resampling

    protocol = from_options(Protocol, options)
    file, language = options.hypotheses, protocol.language
    if file.is_dir():
        from signfuse_dist.experiment import load_resolved
        from signfuse_dist.run_folder import EvaluationFolder

        folder = EvaluationFolder.open(file, options.split)
        file = folder.hypotheses
        language = language or load_resolved(folder.run.config).data.language
    scores = score_files(
        file,
        protocol.references or (),
        protocol.find_preset(),
        language,
        allow_empty=protocol.allow_empty,
        resampling=Resampling() if options.intervals else None,
        bleurt=protocol.bleurt,
    )
    unseen = None
    if options.trained is not None:
        from signfuse_dist.evaluation.seen import read_texts, score_unseen, unseen_ids
        from signfuse_dist.evaluation.translations import read_scored

        ours, theirs = read_scored(file, protocol.references or (), [])
        texts = read_texts(options.trained)
        unseen = score_unseen(ours, theirs, texts, protocol.find_preset(), language)
        if unseen is None:
            known = len(theirs) - len(unseen_ids(theirs, texts))
            print(f"{known} of {len(theirs)} references are sentences of training\n")
    scored = SplitScores(scores, unseen=unseen)
    print(format_split_scores(scored))
    if protocol.json is not None:
        write_split_scores(protocol.json, scored)
    return 0


def _compare(options: argparse.Namespace) -> int:
    read = (*options.systems, *(options.references or ()), options.baselines)
    _refuse_absent(*read)
    _refuse_json_place(options.json, *read)
    rows = _published(options)
    with importing():
        from signfuse_dist.evaluation.compare import compare, format_comparison, read_systems
        from signfuse_dist.evaluation.significance import Resampling
        from signfuse_dist.files import write_json
        from signfuse_dist.report.published import extra_data, format_table, table_for

    if len(options.systems) < 2 and not rows:
        raise UserError(
            "a comparison needs two systems at least; `signfuse score` scores one, and "
            "--published CORPUS puts one among published results"
        )
    protocol = from_options(Protocol, options)
    preset, resampling = protocol.find_preset(), from_options(Resampling, options)
    systems = read_systems(
        options.systems, options.split, protocol.references or (), protocol.allow_empty
    )
    comparison = compare(
        systems,
        preset,
        resampling,
        language=protocol.language,
        bleurt=protocol.bleurt,
        seeds=options.seeds,
    )
    print(format_comparison(comparison))
    figures = comparison.to_dict()
    if rows:
        ours = {
            name: {metric: scores[place].value for metric, scores in comparison.scores.items()}
            for place, name in enumerate(comparison.systems)
        }
        more = {system.name: extra_data(system.config, options.published) for system in systems}
        table = table_for(rows, ours, preset, more)
        print(f"\namong the published results of {options.published}, ours by {preset.name}:\n")
        print(format_table(table))
        figures["published"] = [asdict(row) for row in table]
    if protocol.json is not None:
        write_json(protocol.json, figures)
    return 0


def _published(options: argparse.Namespace) -> list[Published]:
    """Return the published results that are asked for, with those of the user's file."""
    from signfuse_dist.files import read_text
    from signfuse_dist.report import published

    corpus, split, file = options.published, options.split or "test", options.baselines
    if corpus is None:
        if file is not None:
            raise UserError(f"--baselines {file}: say of which corpus, with --published CORPUS")
        return []
    more = [] if file is None else published.read_published(read_text(file), str(file))
    rows = published.results(corpus, split, more)
    if not rows:
        known = sorted({*published.corpora(), *(row.corpus for row in more)})
        near = "" if corpus in known else suggest(corpus, known)
        raise UserError(
            f"--published {corpus}: there are no published results of its split {split!r}"
            f"{near}. There are some of test of: {', '.join(known)}"
        )
    return rows


def _report(options: argparse.Namespace) -> int:
    from signfuse_dist.run_folder import RunFolder

    RunFolder.open(options.run_folder).evaluated(options.split, options.name)
    with importing():
        from signfuse_dist.report.report import write_report

    print(write_report(options.run_folder, options.split, options.name))
    return 0


def _translate(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.asked import ask_model
    from signfuse_dist.evaluation.choices import Choices

    _refuse_not_above_zero(options, "nbest", "folder_fps")
    choices = from_options(Choices, options, pose_model=options.pose_model)
    ask_model(options.model, choices.decoding)
    from signfuse_dist.evaluation.translate import translate_videos

    return translate_videos(options.model, options.videos, choices)


def _serve(options: argparse.Namespace) -> int:
    from signfuse_dist.evaluation.asked import ask_model
    from signfuse_dist.evaluation.choices import Limits, Server

    limits = ("max_seconds", "max_work_seconds", "max_pixels", "max_frames")
    quotas = ("max_megabytes", "max_waiting", "max_kept_megabytes")
    _refuse_not_above_zero(options, *limits, *quotas)
    if not _is_local(options.host):
        print(
            f"warning: --host {options.host} lets other machines use this page; it asks for no "
            "password",
            file=sys.stderr,
        )
    server = from_options(Server, options, limits=from_options(Limits, options))
    ask_model(options.model, server.decoding)
    from signfuse_dist.serve.page import serve

    return serve(options.model, server, options.pose_model)


def _refuse_absent(*paths: Path | None) -> None:
    """Raise UserError for the first file or folder that is not there."""
    for path in paths:
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder")


def _refuse_json_place(json: Path | None, *read: Path | None) -> None:
    """Raise UserError where the figures would take the place of a folder, or of what is read."""
    if json is None or not json.exists():
        return
    if json.is_dir():
        raise UserError(f"--json {json}: is a folder; name the file that the figures go to")
    if any(path is not None and path.exists() and json.samefile(path) for path in read):
        raise UserError(f"--json {json}: is read here, and would be overwritten; name another file")


def _refuse_not_above_zero(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
