"""What is done to data: `pack`, `pose`, `verify`, `stats` and `show`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.data.joints import PoseExtractor

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_division(command: argparse.ArgumentParser) -> None:
    """Add the options that divide the work."""
    command.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    add_tasks(command)


def add_tasks(command: argparse.ArgumentParser) -> None:
    """Add the options of a task that shares its work with others."""
    command.add_argument(
        "--task-id", type=int, default=0, help="which of several tasks this is, from 0 (default: 0)"
    )
    command.add_argument(
        "--num-tasks",
        type=int,
        default=1,
        help="tasks that share the work, such as those of an array job (default: 1)",
    )


def add_extractor(command: argparse.ArgumentParser, choices: Sequence[str]) -> None:
    """Add the options that say where joints come from."""
    command.add_argument(
        "--extractor",
        choices=choices,
        help="where joints come from (default: the table's column `joints` where it has one, "
        "else mediapipe)",
    )
    command.add_argument(
        "--pose-model",
        type=Path,
        help="a holistic_landmarker.task for mediapipe 1.0 or newer",
    )


def chosen_extractor(options: argparse.Namespace) -> PoseExtractor | None:
    """Return the extractor that was asked for, or None for the default."""
    from signfuse_dist.data.joints import NoJoints
    from signfuse_dist.data.mediapipe import choose_extractor

    if options.pose_model and options.extractor == "none":
        raise UserError("--pose-model has no use with --extractor none; leave one of them out")
    if options.extractor == "none":
        return NoJoints()
    if options.extractor == "mediapipe" or options.pose_model:
        return choose_extractor(options.pose_model)
    return None


def add_pose(commands: _Commands) -> None:
    """Add the subcommand `pose`."""
    command = commands.add_parser(
        "pose",
        help="extract the joints of packed clips again, beside their frames",
        description="Write a pose set of a packed split, DIR/poses/NAME, from the source videos. "
        "The frames stay as they are. Interrupted, run it again: finished shards are kept.",
    )
    command.add_argument("corpus", help="as it was packed: `table` or `synthetic`")
    command.add_argument("--root", type=Path, required=True, help="the table, or the folder")
    command.add_argument("--split", required=True, help="the split that was packed")
    command.add_argument(
        "--shards", type=Path, required=True, metavar="DIR", help="the folder it was packed into"
    )
    command.add_argument("--name", required=True, help="the pose set's own name")
    add_division(command)
    add_extractor(command, ("mediapipe",))
    command.set_defaults(run=_pose)


def _pose(options: argparse.Namespace) -> int:
    from signfuse_dist.data.pack import extract_poses

    summary = extract_poses(
        options.corpus,
        options.root,
        options.split,
        options.shards,
        options.name,
        options.workers,
        options.task_id,
        options.num_tasks,
        chosen_extractor(options),
    )
    print(summary)
    return 0


def add_stats(commands: _Commands) -> None:
    """Add the subcommand `stats`."""
    command = commands.add_parser(
        "stats",
        help="tables and plots of what a packed split holds",
        description="Print clip lengths, text lengths, how often hands and face were found, and "
        "the signers of a packed split, and draw them.",
    )
    command.add_argument("folder", help="a split's folder or address (with manifest.json)")
    _add_poses(command)
    command.add_argument(
        "--plot", type=Path, default=Path("stats.png"), help="where to draw it (default: stats.png)"
    )
    command.set_defaults(run=_stats)


def _stats(options: argparse.Namespace) -> int:
    from signfuse_dist.data.look import collect
    from signfuse_dist.data.storage import open_folder
    from signfuse_dist.files import written_whole

    stats = collect(open_folder(options.folder), options.poses)
    print(stats)
    with written_whole(options.plot) as file:
        file.write(stats.plot())
    print(f"\n{options.plot}")
    return 0


def add_show(commands: _Commands) -> None:
    """Add the subcommand `show`."""
    command = commands.add_parser(
        "show",
        help="a clip's frames with the skeleton drawn over them, as PNG",
        description="Draw a contact sheet of a packed clip. An id that begins with '-' goes after "
        "'--': signfuse show --out clip.png -- FOLDER -fZc293MpJk_0",
    )
    command.add_argument("folder", help="a split's folder or address (with manifest.json)")
    command.add_argument("id", help="the clip's id, as the corpus has it")
    _add_poses(command)
    command.add_argument("--frames", type=int, default=12, help="at most (default: %(default)s)")
    command.add_argument("--out", type=Path, default=Path("clip.png"), help="default: %(default)s")
    command.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from signfuse_dist.data.look import show
    from signfuse_dist.data.storage import open_folder
    from signfuse_dist.errors import UserError
    from signfuse_dist.files import written_whole

    if options.frames < 1:
        raise UserError(f"--frames {options.frames}: at least 1 is needed")
    picture = show(open_folder(options.folder), options.id, options.frames, options.poses)
    with written_whole(options.out) as file:
        picture.save(file, format="PNG")
    print(options.out)
    return 0


def _add_poses(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--poses", metavar="NAME", help="the joints of this pose set (see `signfuse pose`)"
    )


def add_pack(commands: _Commands) -> None:
    """Add the subcommand `pack`."""
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


def add_verify(commands: _Commands) -> None:
    """Add the subcommand `verify`."""
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
    from signfuse_dist.data.manifest import remove_stamp, write_stamp
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
