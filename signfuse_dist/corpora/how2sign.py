"""How2Sign with its re-aligned times (shards/how2sign.md).

``how2sign`` cuts the full videos at the re-aligned times. The clips that were published ready cut
follow the times before re-alignment: they are another corpus, ``how2sign_precut``, which is packed
only when it is asked for by that name.

A row's id is SENTENCE_NAME, which names one clip and which published translations are keyed by.
SENTENCE_ID does not name one: two signers perform the same video under the same id. Nothing is cut
out of ids: sentences that were joined have two numbers (``<VIDEO_ID>_16_17``), and the columns name
the video.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
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
