"""The subcommands `translate` and `serve`: a trained model and new clips."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


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
        options.joints, options.pose_model, options.folder_fps, options.nbest, options.decoding,
        options.workers, options.out,
    )  # fmt: skip
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
    from signfuse_dist.evaluation.new_clip import Limits
    from signfuse_dist.serve.page import Server, serve

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
