"""CSL-News and what is published like it: a JSON list of ``{video, text, pose}``.

``CSL_News_Labels.json`` names a video and a pickle of COCO-WholeBody poses for each text, in the
folders ``rgb_format`` and ``pose_format``, or wherever the paths lead below the root. There are no
splits: ``dev`` and ``test`` are drawn from the entries' own names.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from signfuse_dist.corpora.poses import WHOLEBODY
from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    TextReader,
    Tree,
    accept,
    flag_scripts,
    read_published_json,
    refuse_split,
    split_by_name,
)
from signfuse_dist.system_errors import unreadable

NAME = "csl_news"
SPLITS = ("train", "dev", "test")
LABELS = "CSL_News_Labels.json"
SIZE = (1280, 720)
"""Of the picture of joints alone: positions are shares of it, so that only its shape counts."""
FPS = 25.0
"""Frames a second of the broadcasts; poses say none."""
_VIDEOS, _POSES = ("", "rgb_format", "videos"), ("", "pose_format", "poses")
_SHARE = 0.005  # of the entries, in dev and in test
_MOST_BYTES = 1 << 30


def read_csl_news(root: Path, split: str, poses: str | None = None) -> Corpus:
    """Read a split of the folder ``root``, or of the JSON file that ``root`` names.

    With ``poses`` the joints are the published ones; where there are no videos at all, the clips
    are of joints alone. Raises :class:`CorpusError` for a file that is none.
    """
    refuse_split(NAME, split, SPLITS)
    path = root / LABELS if root.is_dir() else root
    folder = path.parent
    if poses not in (None, WHOLEBODY):
        raise CorpusError(
            f"--poses {poses}: the poses of {NAME} are of COCO-WholeBody, {WHOLEBODY}"
        )
    lines = [(number, one) for number, one in _entries(path) if _belongs(one, split)]
    tree, texts = Tree(folder), TextReader()
    videos = _place(folder, _VIDEOS, lines, "video")
    tracks = _place(folder, _POSES, lines, "pose")
    alone = poses is not None and videos is None

    def to_row(number: int, fields: Fields) -> ClipRow:
        video = PurePosixPath(videos or "", fields["video"]).as_posix()
        pose = PurePosixPath(tracks or "", fields["pose"]).as_posix()
        if poses is not None and not fields["pose"]:
            raise CorpusError("no poses: the entry names none")
        return ClipRow(
            row=number,
            id=fields["id"],
            video=None if alone else tree.find(video, "video"),
            source=pose if alone else video,
            text=texts.read(fields["text"]),
            start=None,
            end=None,
            signer=None,
            language="zh",
            split=split,
            joints=None if poses is None else tree.find(pose, "pose"),
            folder=FolderFrames(FPS, None) if alone else None,
            size=SIZE if alone else None,
        )

    rows, rejected = accept(lines, "id", to_row)
    notes = ["there are no videos, so the clips are of joints alone"] if alone else []
    return Corpus(
        name=NAME,
        root=folder.resolve().name,
        split=split,
        rows=flag_scripts(rows, (row.text for row in rows)),
        rejected=tuple(rejected),
        has_joints=poses is not None,
        notes=(*texts.notes, *notes, "published without splits: they follow from the names here"),
        pose_format=poses,
    )


def _entries(path: Path) -> list[tuple[int, Fields | str]]:
    """Return each entry with its number in the list, from 1, or what is wrong with it."""
    try:
        listed = read_published_json(path, _MOST_BYTES, NAME)
    except FileNotFoundError as error:
        raise unreadable(error, f"{NAME} {path}", CorpusError) from error
    if not isinstance(listed, list):
        raise CorpusError(f"{NAME} {path}: is no list of entries with video, text and pose")
    return [(number, _fields(one)) for number, one in enumerate(listed, 1)]


def _fields(entry: Any) -> Mapping[str, str] | str:
    if not isinstance(entry, dict):
        return "an entry that is no object"
    values = {name: entry.get(name, "") for name in ("video", "text", "pose")}
    if not all(isinstance(value, str) for value in values.values()):
        return "video, text or pose is no text"
    name = PurePosixPath(values["video"] or values["pose"]).name
    return {**values, "id": name.rsplit(".", 1)[0]}


def _belongs(entry: Fields | str, split: str) -> bool:
    if isinstance(entry, str):
        return split == "train"
    return split_by_name(entry["id"], _SHARE, _SHARE) == split


def _place(
    folder: Path, places: Sequence[str], lines: Sequence[tuple[int, Fields | str]], column: str
) -> str | None:
    """Return the folder in which the first files lie that are there; None where none is."""
    written = [fields[column] for _, fields in lines if not isinstance(fields, str)]
    for place in places:
        if any(_is_there(Tree(folder / place), name, column) for name in written[:100]):
            return place
    return None


def _is_there(tree: Tree, written: str, column: str) -> bool:
    try:
        path = tree.find(written, column)
        return path.is_file()
    except CorpusError:
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise unreadable(error, f"{NAME} {path}", CorpusError) from error
