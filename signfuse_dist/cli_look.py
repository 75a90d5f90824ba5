"""The subcommands that look into packed shards: `stats` and `show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


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
    from signfuse_dist.data.stats import collect
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
    from signfuse_dist.data.show import show
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
