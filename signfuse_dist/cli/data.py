"""What is done to data: `pack`, `pose`, `features`, `verify`, `stats` and `show`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.cli import add_options, from_options
from signfuse_dist.errors import MachineError, UserError, raise_together

if TYPE_CHECKING:
    from signfuse_dist.data.joints import PoseExtractor
    from signfuse_dist.data.pack_summary import PackSummary
    from signfuse_dist.data.storage import Folder
    from signfuse_dist.model.vision import FrameVectors

ALL_SPLITS = "all"  # `--split all`


def add_pack(command: argparse.ArgumentParser) -> None:
    """Describe `pack` and add its options."""
    from signfuse_dist.corpora import CORPORA
    from signfuse_dist.data.manifest import PackConfig
    from signfuse_dist.data.pack_workers import Division

    published = [corpus for corpus in CORPORA if corpus not in ("table", "synthetic")]
    command.description = (
        "Decode, resize, extract joints and write shards. Interrupted, run it again: finished "
        "shards are kept. Rows that cannot be packed are named in dropped.tsv, and what is "
        "annotated or on the disk alone in orphans.tsv. Nothing is dropped because a disk is away "
        "or full: packing stops with status 75, and the same command goes on."
    )
    command.add_argument(
        "corpus",
        help="`table` (ROOT is a .tsv, .csv or .xlsx), `synthetic` (ROOT is a folder, drawn when "
        f"empty), or {_listed(published)} (ROOT is the unpacked folder); see shards/",
    )
    command.add_argument("--root", type=Path, required=True, help="the table, or the folder")
    command.add_argument(
        "--split",
        required=True,
        help="which rows: train, dev (val) or test; `all` packs each split that the corpus has, "
        "or that the table's column `split` names",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the split's own folder; with `--split all` the folder above, each in OUT/SPLIT",
    )
    command.add_argument(
        "--retry-dropped",
        action="store_true",
        help="make the finished shards again that name dropped rows, such as videos that were "
        "copied since; all others are kept",
    )
    add_options(command, Division)
    add_options(command, PackConfig)
    _add_extractor(command, ("mediapipe", "none"))
    command.set_defaults(run=_pack)


def add_pose(command: argparse.ArgumentParser) -> None:
    """Describe `pose` and add its options."""
    from signfuse_dist.corpora import CORPORA
    from signfuse_dist.data.pack_workers import Division

    command.description = (
        "Write a pose set of a packed split, DIR/poses/NAME, from the source videos. The frames "
        "stay as they are. Interrupted, run it again: finished shards are kept."
    )
    command.add_argument("corpus", help=f"as it was packed: {_listed(CORPORA)}")
    command.add_argument("--root", type=Path, required=True, help="the table, or the folder")
    command.add_argument("--split", required=True, help="the split that was packed")
    command.add_argument(
        "--shards", type=Path, required=True, metavar="DIR", help="the folder it was packed into"
    )
    command.add_argument("--name", required=True, help="the pose set's own name")
    add_options(command, Division)
    _add_extractor(command, ("mediapipe",))
    command.set_defaults(run=_pose)


def add_features(command: argparse.ArgumentParser) -> None:
    """Describe `features` and add its options."""
    from signfuse_dist.data.pack_workers import Division

    command.description = (
        "Write a feature set of packed splits, SPLIT/features/NAME: one vector a frame, computed "
        "from the packed pictures by a vision model of transformers, or taken from files that "
        "others publish, an array a clip. model.visual_backbone=features:NAME trains on it without "
        "reading a picture. Interrupted, run it again: finished shards are kept."
    )
    command.add_argument(
        "shards", type=Path, help="a packed split's folder, or the one above several"
    )
    made = command.add_mutually_exclusive_group(required=True)
    made.add_argument(
        "--model",
        metavar="NAME",
        help="a vision model of transformers, of the hub or in a folder: DINOv2, CLIP, SigLIP, "
        "ViT, VideoMAE, ...",
    )
    made.add_argument(
        "--from",
        dest="published",
        type=Path,
        metavar="FOLDER",
        help="published vectors: ID.npy or ID.npz for each clip, [vectors, numbers]",
    )
    command.add_argument(
        "--name", help="the set's own name (default: the last part of the model's name)"
    )
    command.add_argument("--revision", help="of --model on the hub: commit, tag or branch")
    command.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="as which numbers are stored (default: %(default)s)",
    )
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="in which --model computes (default: %(default)s)",
    )
    command.add_argument(
        "--frames-at-once",
        type=int,
        default=64,
        help="pictures that --model sees together (default: %(default)s)",
    )
    command.add_argument(
        "--rate", type=float, help="of --from: vectors a second, where it is not one for each frame"
    )
    command.add_argument(
        "--window",
        type=float,
        help="with --rate: seconds that each vector is of (default: 1 / rate)",
    )
    command.add_argument(
        "--file",
        metavar="PATTERN",
        help="of --from: a clip's file, {id} being its id, such as {id}_s2wrapping.npy",
    )
    add_options(command, Division, "task_id", "num_tasks")
    command.set_defaults(run=_features)


def add_verify(command: argparse.ArgumentParser) -> None:
    """Describe `verify` and add its options."""
    from signfuse_dist.data.pack_workers import Division

    command.description = (
        "Check checksums, indexes, JPEGs, lengths and joints of a packed split, or of each split "
        "in a folder. Where nothing is wrong, verified.json beside the manifest says so to "
        "`signfuse check`."
    )
    command.add_argument(
        "folder", help="folder or address of a split or of a pose set, or the one above splits"
    )
    add_options(command, Division, "workers")
    command.set_defaults(run=_verify)


def add_stats(command: argparse.ArgumentParser) -> None:
    """Describe `stats` and add its options."""
    command.description = (
        "Print clip lengths, text lengths, how often hands and face were found, and the signers "
        "of a packed split, and plot them; of each split in a folder, with a line for all."
    )
    _add_split(command)
    command.add_argument(
        "others",
        nargs="*",
        metavar="FOLDER",
        help="further folders of the same kind, such as those of a blend's other corpora",
    )
    command.add_argument(
        "--plot",
        type=Path,
        help="the plot (default: stats.png in the split, or with --poses in the pose set); of "
        "several splits, each one's name follows its own",
    )
    command.set_defaults(run=_stats)


def add_show(command: argparse.ArgumentParser) -> None:
    """Describe `show` and add its options."""
    command.description = (
        "Draw a contact sheet of a packed clip, as PNG. Of a clip that was cropped, the square in "
        "its picture stands below with the landmarks of hands; how many are cut off is printed. An "
        "id that begins with '-' goes after '--': signfuse show --out clip.png -- FOLDER "
        "-fZc293MpJk_0"
    )
    _add_split(command)
    command.add_argument("id", help="the clip's id, as the corpus has it")
    command.add_argument("--frames", type=int, default=12, help="at most (default: %(default)s)")
    command.add_argument("--out", type=Path, help="default: clip.png in the split")
    command.set_defaults(run=_show)


def add_pose_model(command: argparse.ArgumentParser) -> None:
    """Add the option that names MediaPipe's model file."""
    command.add_argument(
        "--pose-model",
        type=Path,
        help="a holistic_landmarker.task, for mediapipe 1.0 or newer",
    )


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", help="a split's folder or address (with manifest.json)")
    command.add_argument(
        "--poses", metavar="NAME", help="the joints of this pose set (see `signfuse pose`)"
    )


def _add_extractor(command: argparse.ArgumentParser, choices: Sequence[str]) -> None:
    from signfuse_dist.corpora import POSE_FORMATS

    command.add_argument(
        "--extractor",
        choices=choices,
        help="where joints come from (default: the table's column `joints` or `poses` where it has "
        "one, else mediapipe)",
    )
    command.add_argument(
        "--poses",
        choices=POSE_FORMATS,
        help="the corpus's published poses in the place of an extractor, written in this way "
        "(docs/poses.md; of a table, default: what the endings in its column `poses` say)",
    )
    add_pose_model(command)
    command.add_argument(
        "--visibility",
        type=float,
        default=0.0,
        help="with --extractor mediapipe: a landmark of the body that it sees less surely than "
        "this is missing, such as 0.5 (default: 0, all that it places are kept)",
    )


def _listed(names: Sequence[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}"


def _extractor(options: argparse.Namespace) -> PoseExtractor | None:
    """Return the extractor that was asked for, or None for the default."""
    from signfuse_dist.data.joints import NoJoints
    from signfuse_dist.data.mediapipe import choose_extractor

    if options.pose_model and options.extractor == "none":
        raise UserError("--pose-model has no use with --extractor none; leave one of them out")
    if options.poses and (options.extractor or options.pose_model):
        raise UserError(
            f"--poses {options.poses}: the joints are the published ones, so --extractor and "
            "--pose-model have no use; leave one of them out"
        )
    by_mediapipe = options.extractor == "mediapipe" or options.pose_model
    if options.visibility and not by_mediapipe:
        raise UserError(
            f"--visibility {options.visibility:g} is of joints that MediaPipe finds: write "
            "--extractor mediapipe beside it"
        )
    if options.extractor == "none":
        return NoJoints()
    if by_mediapipe:
        return choose_extractor(options.pose_model, options.visibility)
    return None


def _pack(options: argparse.Namespace) -> int:
    from signfuse_dist.data.pack import DROPPED_NAME

    if options.split != ALL_SPLITS:
        print(_pack_split(options, options.split, options.out))
        return 0
    splits = _all_splits(options)
    summaries, errors = [], []
    for split in splits:
        try:
            summaries.append(_pack_split(options, split, options.out / split))
        except MachineError:
            raise
        except UserError as error:
            errors.append(f"split {split}: {error}")
        else:
            print(summaries[-1])
    raise_together(errors, f"splits that are not packed, of {len(splits)}")
    rows, packed = sum(s.num_rows for s in summaries), sum(s.num_packed for s in summaries)
    print(
        f"all {len(splits)} splits: {rows} rows = {packed} packed + "
        f"{sum(len(s.dropped) for s in summaries)} dropped; each names its own in {DROPPED_NAME}"
    )
    return 0


def _all_splits(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the splits of a corpus; each is to be the name of a folder."""
    from signfuse_dist.corpora import splits_of
    from signfuse_dist.data.manifest import is_plain_name

    splits = splits_of(options.corpus, options.root)
    errors = [f"{split!r} is no name for a folder" for split in splits if not is_plain_name(split)]
    raise_together(errors, f"{options.root}: splits that cannot be packed by --split all")
    return splits


def _pack_split(options: argparse.Namespace, split: str, out: Path) -> PackSummary:
    from signfuse_dist.data.manifest import PackConfig
    from signfuse_dist.data.pack import pack

    return pack(
        options.corpus,
        options.root,
        split,
        out,
        from_options(PackConfig, options),
        workers=options.workers,
        task_id=options.task_id,
        num_tasks=options.num_tasks,
        extractor=_extractor(options),
        poses=options.poses,
        retry_dropped=options.retry_dropped,
    )


def _pose(options: argparse.Namespace) -> int:
    from signfuse_dist.data.pack import extract_poses

    summary = extract_poses(
        options.corpus,
        options.root,
        options.split,
        options.shards,
        options.name,
        workers=options.workers,
        task_id=options.task_id,
        num_tasks=options.num_tasks,
        extractor=_extractor(options),
        poses=options.poses,
    )
    print(summary)
    return 0


def _features(options: argparse.Namespace) -> int:
    from signfuse_dist.data.manifest import feature_path, split_folders
    from signfuse_dist.data.vector_sets import PublishedVectors, compute_vectors, import_vectors

    _refuse_mixed(options)
    if options.model is not None and Path(options.model).is_dir():
        # From whatever folder the set is gone on with, or a model of it is used.
        options.model = os.path.abspath(options.model)  # which leads up, too
    name = options.name or Path(options.model or "").name
    if not name:
        raise UserError("--from needs --name: what the published vectors are called")
    feature_path(name)  # or say that it is no name
    folders = [Path(str(folder)) for folder in split_folders(options.shards)]
    if options.published is not None:
        given = options.published, name, options.file, options.rate, options.window, options.dtype
        published = PublishedVectors(*given)
        for folder in folders:
            print(import_vectors(folder, name, published))
        return 0
    vectorise = _vectoriser(options, folders)
    for folder in folders:
        tasks = {"task_id": options.task_id, "num_tasks": options.num_tasks}
        print(compute_vectors(folder, name, vectorise, **tasks))
    return 0


def _refuse_mixed(options: argparse.Namespace) -> None:
    """Raise UserError for options that belong to the other way of making a feature set."""
    computed = {"--revision": options.revision, "--precision": options.precision != "fp32"}
    computed["--num-tasks"] = options.num_tasks != 1
    published = {"--rate": options.rate, "--window": options.window, "--file": options.file}
    of, others = ("--from", computed) if options.published else ("--model", published)
    wrong = [f"{option} has no use with {of}; leave it out" for option, it in others.items() if it]
    if options.frames_at_once < 1:
        wrong.append(f"--frames-at-once {options.frames_at_once}: at least 1 is needed")
    raise_together(wrong, "signfuse features")


def _vectoriser(options: argparse.Namespace, folders: Sequence[Path]) -> FrameVectors:
    """Load the model that was asked for, and say what it wants to see."""
    from signfuse_dist import device
    from signfuse_dist.data.manifest_files import load_manifest
    from signfuse_dist.model.vision import FrameVectors, load_vision_model

    sizes = [load_manifest(folder).packing.settings.frame_size for folder in folders]
    model = load_vision_model(options.model, options.revision, f"--model {options.model}")
    vectorise = FrameVectors(
        options.model,
        model,
        device.choose(),
        frame_size=min(sizes),
        dtype=options.dtype,
        precision=options.precision,
        frames_at_once=options.frames_at_once,
    )
    together = "" if model.window == 1 else f", {model.window} frames at a time"
    print(f"{options.model}: {model.output_dim} numbers a frame, of {model.picture}{together}")
    return vectorise


def _verify(options: argparse.Namespace) -> int:
    from signfuse_dist.data.manifest import split_folders
    from signfuse_dist.data.storage import open_folder

    given = open_folder(options.folder)
    folders = split_folders(given)
    counts = [
        _verify_set(folder, options.folder if folder == given else str(folder), options.workers)
        for folder in folders
    ]
    if folders != [given]:
        damaged = sum(map(bool, counts))
        rest = f"{sum(counts)} faults, in {damaged} of them" if damaged else "whole"
        print(f"all {len(folders)} splits of {options.folder}: {rest}")
    return 1 if any(counts) else 0


def _verify_set(folder: Folder, name: str, workers: int) -> int:
    """Verify one set, stamp it, print its faults, and return how many there are."""
    from signfuse_dist.data.columns import renew_columns
    from signfuse_dist.data.stamp import remove_stamp, write_stamp
    from signfuse_dist.data.verify import verify

    with _stamping(folder):
        faults = verify(folder, workers)
        if faults:
            remove_stamp(folder)
        elif not (write_stamp(folder) and renew_columns(folder)):
            print(f"{name}: cannot be written to, so `signfuse check` will not know of this")
    for fault in faults:
        print(fault)
    print(f"{name}: {len(faults)} faults" if faults else f"{name}: whole")
    return len(faults)


@contextmanager
def _stamping(folder: Folder) -> Iterator[None]:
    """Hold the set while it is verified, where a stamp can be written: it must not be packed."""
    from signfuse_dist.data.manifest import MANIFEST_NAME
    from signfuse_dist.data.storage import is_local
    from signfuse_dist.locks import Share, held_share

    with ExitStack() as until_end:
        if is_local(folder) and (folder / MANIFEST_NAME).is_file():
            lock = held_share(
                Path(str(folder)), Share(), f"the set in {folder}", about="signfuse verify"
            )
            with suppress(OSError):  # a folder that is only read: that is said where it is stamped
                until_end.enter_context(lock)
        yield


def _stats(options: argparse.Namespace) -> int:
    from signfuse_dist.data.look import collect
    from signfuse_dist.data.manifest import pose_path, split_folders
    from signfuse_dist.data.storage import open_folder

    names = [options.folder, *options.others]
    given = [open_folder(name) for name in names]
    folders = [folder for of in given for folder in split_folders(of)]
    several, every = folders != given[:1], []
    for folder in folders:
        stats = collect(folder, options.poses)
        every.append(stats)
        plot: Path | None = options.plot
        if plot is not None and several:
            name = folder.name if len(given) == 1 else f"{folder.parent.name}-{folder.name}"
            plot = plot.with_name(f"{plot.stem}-{name}{plot.suffix}")
        print(f"{stats}\n")
        within = folder if options.poses is None else folder / pose_path(options.poses)
        _write_picture(plot, within, "stats.png", "--plot", stats.plot())
        if several:
            print()
    if several:
        clips, frames = sum(len(s.frames) for s in every), sum(int(s.frames.sum()) for s in every)
        hours = sum(float(s.seconds.sum()) for s in every) / 3600
        print(
            f"all {len(every)} splits of {', '.join(names)}: {clips:,} clips, {frames:,} frames, "
            f"{hours:.2f} h"
        )
    return 0


def _show(options: argparse.Namespace) -> int:
    from signfuse_dist.data.look import show
    from signfuse_dist.data.storage import open_folder

    if options.frames < 1:
        raise UserError(f"--frames {options.frames}: at least 1 is needed")
    folder, png = open_folder(options.folder), BytesIO()
    picture, words = show(folder, options.id, options.frames, options.poses)
    picture.save(png, format="PNG")
    _write_picture(options.out, folder, "clip.png", "--out", png.getvalue())
    if words:
        print(words)
    return 0


def _write_picture(
    path: Path | None, folder: Folder, name: str, option: str, content: bytes
) -> None:
    """Write a picture to ``path``, or by ``name`` into the folder of what it shows; print where.

    Raises UserError that names the ``option`` where the folder takes no files.
    """
    from signfuse_dist.data.storage import is_local
    from signfuse_dist.files import written_whole

    if path is None and not is_local(folder):
        raise UserError(f"{folder} is an address: say where the picture goes, {option} {name}")
    path = Path(str(folder)) / name if path is None else path
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give {option} FILE"
        ) from error
    print(path)
