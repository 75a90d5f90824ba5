"""How2Sign with its re-aligned times (shards/how2sign.md).

``how2sign`` cuts the full videos at the re-aligned times. The clips that were published ready cut
follow the times before re-alignment: they are another corpus, ``how2sign_precut``, which is packed
only when it is asked for by that name.

A row's id is SENTENCE_NAME, which names one clip and which published translations are keyed by.
SENTENCE_ID does not name one: two signers perform the same video under the same id. Nothing is cut
out of ids: sentences that were joined have two numbers (``<VIDEO_ID>_16_17``), and the columns name
the video.

The published OpenPose keypoints are a folder a clip, and follow the times before re-alignment, too.
With ``--poses openpose`` their place in the video is found by ``START`` of the first-published
table, ``how2sign_<split>.csv`` or columns of the re-aligned one. Where there are no full videos,
the clips are of joints alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from signfuse_dist.corpora.poses import OPENPOSE
from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    Rejected,
    TextReader,
    Tree,
    accept,
    check_window,
    count_note,
    find_anchor,
    flag_scripts,
    names_in,
    refuse_split,
    seconds,
    unmatched,
)
from signfuse_dist.corpora.tables import Form, Lines, read_lines

NAME = "how2sign"
PRECUT = "how2sign_precut"
POSE_FPS, POSE_SIZE = 24.0, (1280, 720)
"""Frames a second and picture of the published keypoints, which do not say either."""
ROWS = {"train": None, "val": 1741, "test": 2357}
"""Rows of each split as published; None: not known here."""

_ANCHORS = ("", "How2Sign")
# Published with tabs in spite of its name; spreadsheets save it with commas or semicolons.
_FORM = Form(("\t", ",", ";"))
_TIMES = (("START_REALIGNED", "END_REALIGNED"), ("START", "END"))
_SIGNER = re.compile(r"-([0-9]+)-rgb_front\Z")
_PRECUT_NOTE = (
    "these clips are cut at the times before re-alignment: many begin or end in another sentence "
    "than their text, and systems trained on them come out much worse. `how2sign` cuts the full "
    "videos at the re-aligned times"
)


def read_how2sign(root: Path, split: str) -> Corpus:
    """Read a split whose clips are cut from the full videos, at the re-aligned times.

    ``root`` is the folder How2Sign, or the one that holds it. Raises :class:`CorpusError` when its
    table is not there or cannot be read.
    """
    anchor, annotation = _open(NAME, root, split)
    start, end = _time_columns(annotation)
    place = f"video_level/{split}/rgb_front/raw_videos"
    tree, texts = Tree(anchor / place), TextReader(published=True)

    def to_row(number: int, fields: Fields) -> ClipRow:
        begin, finish = _time(fields, start), _time(fields, end)
        check_window(begin, finish)
        return _row(number, fields, tree, texts, place, "VIDEO_NAME", split, begin, finish)

    return _corpus(NAME, anchor, split, annotation, to_row, texts, place, "VIDEO_NAME", ())


def read_how2sign_precut(root: Path, split: str) -> Corpus:
    """Read a split whose clips are those that were published ready cut, each of them whole."""
    anchor, annotation = _open(PRECUT, root, split)
    place = f"sentence_level/{split}/rgb_front/raw_videos"
    tree, texts = Tree(anchor / place), TextReader(published=True)

    def to_row(number: int, fields: Fields) -> ClipRow:
        return _row(number, fields, tree, texts, place, "SENTENCE_NAME", split, None, None)

    return _corpus(
        PRECUT, anchor, split, annotation, to_row, texts, place, "SENTENCE_NAME", (_PRECUT_NOTE,)
    )


def read_how2sign_poses(root: Path, split: str, poses: str) -> Corpus:
    """Read a split as :func:`read_how2sign` does, with the keypoints that were published for it.

    Raises :class:`CorpusError` for another format than OpenPose, and where there are videos but
    nothing says at which second of them the keypoints begin.
    """
    if poses != OPENPOSE:
        raise CorpusError(f"--poses {poses}: {NAME} publishes those of {OPENPOSE}")
    corpus = read_how2sign(root, split)
    anchor, annotation = _open(NAME, root, split)
    began = _began(anchor, annotation, split)
    has_videos = bool(names_in(anchor / f"video_level/{split}/rgb_front/raw_videos", ".mp4"))
    if has_videos and not began:
        raise CorpusError(
            f"{NAME}: the keypoints follow the times before re-alignment, and nothing says where "
            f"they begin in the videos; put how2sign_{split}.csv, the table that was published "
            f"first, into {anchor / f'sentence_level/{split}/text/en/raw_text'}, or take "
            f"{PRECUT}, or move the videos away for clips of joints alone"
        )
    place = f"sentence_level/{split}/rgb_front/features/openpose_output/json"
    tree = Tree(anchor / place)
    rows, rejected = [], list(corpus.rejected)
    for row in corpus.rows:
        joints = tree.find(row.id, "SENTENCE_NAME")
        film = began.get(row.id)
        if began and film is None:
            rejected.append(Rejected(row.row, row.id, "no poses: the first table has no such row"))
        elif film is not None and not _meet(row, film):
            rejected.append(
                Rejected(row.row, row.id, "no poses: the keypoints show another time of the video")
            )
        elif has_videos:
            start = None if film is None else film[0]
            rows.append(replace(row, joints=joints, joints_start=start, size=POSE_SIZE))
        else:
            rows.append(_alone(row, joints, f"{place}/{row.id}", film))
    note = () if has_videos or began else (_PRECUT_NOTE,)
    alone = () if has_videos else ("there are no full videos, so the clips are of joints alone",)
    return replace(
        corpus,
        rows=tuple(rows),
        rejected=tuple(rejected),
        has_joints=True,
        orphans=corpus.orphans if has_videos else (),
        notes=(*alone, *note, *corpus.notes),
        pose_format=poses,
    )


def read_how2sign_precut_poses(root: Path, split: str, poses: str) -> Corpus:
    """Read the clips that were published ready cut, with the keypoints of the same frames."""
    if poses != OPENPOSE:
        raise CorpusError(f"--poses {poses}: {PRECUT} publishes those of {OPENPOSE}")
    corpus = read_how2sign_precut(root, split)
    anchor, _ = _open(PRECUT, root, split)
    place = f"sentence_level/{split}/rgb_front"
    tree = Tree(anchor / place / "features/openpose_output/json")
    has_videos = bool(names_in(anchor / place / "raw_videos", ".mp4"))
    rows = []
    for row in corpus.rows:
        joints = tree.find(row.id, "SENTENCE_NAME")
        source = f"{place}/features/openpose_output/json/{row.id}"
        rows.append(
            replace(row, joints=joints, size=POSE_SIZE)
            if has_videos
            else _alone(row, joints, source, None)
        )
    alone = () if has_videos else ("there are no clips, so joints stand alone",)
    return replace(
        corpus,
        rows=tuple(rows),
        has_joints=True,
        orphans=corpus.orphans if has_videos else (),
        notes=(*alone, *corpus.notes),
        pose_format=poses,
    )


_Film = tuple[float, float]
"""Seconds of the full video at which a clip's keypoints begin and end."""
_ROUNDING = 0.1  # seconds by which keypoints may end before their table says


def _meet(row: ClipRow, film: _Film) -> bool:
    return (row.start or 0.0) < film[1] - _ROUNDING and (row.end or film[1]) > film[0]


def _alone(row: ClipRow, joints: Path, source: str, film: _Film | None) -> ClipRow:
    """Return a row of joints alone: of what the keypoints have of its window, where that is known.

    Re-aligned windows reach beyond the older times at either end.
    """
    begin = end = None
    if film is not None and row.start is not None and row.end is not None:
        begin = max(0.0, row.start - film[0])
        end = row.end - film[0] if row.end < film[1] - _ROUNDING else None
    return replace(
        row,
        video=None,
        source=source,
        joints=joints,
        start=begin,
        end=end,
        folder=FolderFrames(POSE_FPS, None),
        size=POSE_SIZE,
    )


def _began(anchor: Path, annotation: Lines, split: str) -> dict[str, _Film]:
    """Return when in the full video each clip began and ended before re-alignment."""
    first = anchor / f"sentence_level/{split}/text/en/raw_text/how2sign_{split}.csv"
    table = annotation
    if first.is_file():
        table = read_lines(first, ("SENTENCE_NAME", "START", "END"), form=_FORM)
    elif not {"START", "END", "START_REALIGNED"} <= set(annotation.columns):
        return {}
    films: dict[str, _Film] = {}
    for _, fields in table.fields:
        start, end = seconds(fields, "START"), seconds(fields, "END")
        if start is not None and end is not None and end > start:
            films[fields["SENTENCE_NAME"]] = start, end
    return films


def _open(corpus: str, root: Path, split: str) -> tuple[Path, Lines]:
    refuse_split(corpus, split, tuple(ROWS))
    file = f"sentence_level/{split}/text/en/raw_text/re_aligned/how2sign_realigned_{split}.csv"
    anchor = find_anchor(corpus, root, _ANCHORS, file)
    return anchor, read_lines(
        anchor / file, ("VIDEO_NAME", "SENTENCE_NAME", "SENTENCE"), form=_FORM
    )


def _time_columns(annotation: Lines) -> tuple[str, str]:
    for start, end in _TIMES:
        if start in annotation.columns and end in annotation.columns:
            return start, end
    names = " nor ".join(", ".join(pair) for pair in _TIMES)
    raise CorpusError(f"table {annotation.path}: its times are missing, neither {names} is there")


def _time(fields: Fields, column: str) -> float:
    value = seconds(fields, column)
    if value is None:
        raise CorpusError(f"bad time: {column} is empty; the clip would be the whole video")
    return value


def _row(
    number: int,
    fields: Fields,
    tree: Tree,
    texts: TextReader,
    place: str,
    column: str,
    split: str,
    start: float | None,
    end: float | None,
) -> ClipRow:
    file = f"{fields[column]}.mp4"
    signer = _SIGNER.search(fields["VIDEO_NAME"])
    return ClipRow(
        row=number,
        id=fields["SENTENCE_NAME"],
        video=tree.find(file, column),
        source=f"{place}/{file}",
        text=texts.read(fields["SENTENCE"]),
        start=start,
        end=end,
        signer=signer[1] if signer else None,
        language="en",
        split=split,
        joints=None,
    )


def _corpus(
    name: str,
    anchor: Path,
    split: str,
    annotation: Lines,
    to_row: Callable[[int, Fields], ClipRow],
    texts: TextReader,
    place: str,
    column: str,
    notes: tuple[str, ...],
) -> Corpus:
    rows, rejected = accept(annotation.lines, "SENTENCE_NAME", to_row)
    flagged = flag_scripts(rows, (fields["SENTENCE"] for _, fields in annotation.fields))
    named = {f"{fields[column]}.mp4" for _, fields in annotation.fields}
    on_disk = names_in(anchor / place, ".mp4")
    return Corpus(
        name=name,
        root=anchor.resolve().name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints=False,
        orphans=tuple(sorted(unmatched(flagged, on_disk, named, place))),
        notes=(*notes, *texts.notes, *count_note(name, split, len(annotation.lines), ROWS[split])),
    )
