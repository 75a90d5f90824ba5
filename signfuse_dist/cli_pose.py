"""The subcommand `pose`, and the options that it shares with `pack`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.data.pose import PoseExtractor

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
    from signfuse_dist.data.pose import NoJoints
    from signfuse_dist.data.pose_mediapipe import choose_extractor

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
    from signfuse_dist.data.pose_set import extract_poses

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
