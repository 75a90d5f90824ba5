"""PHOENIX-2014T, release 3, as it is unpacked (shards/phoenix14t.md).

The annotation's column ``video`` says ``<name>/1/*.png``. There is no folder ``1`` on the disk: the
frames are ``<split>/<name>/*.png``, at 25 a second. ``start`` and ``end`` are -1: a row is its
whole folder.
"""

from __future__ import annotations

from pathlib import Path

from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    TextReader,
    Tree,
    accept,
    count_note,
    find_anchor,
    flag_scripts,
    names_in,
    refuse_split,
    unmatched,
)
from signfuse_dist.corpora.tables import Form, read_lines

NAME = "phoenix14t"
ROWS = {"train": 7096, "dev": 519, "test": 642}
"""Rows of each split as published."""
FRAMES = FolderFrames(fps=25.0, suffix=".png")

_ANCHORS = ("", "PHOENIX-2014-T", "PHOENIX-2014-T-release-v3/PHOENIX-2014-T")
_PLACE = "features/fullFrame-210x260px"
_FORM = Form(("|",), quotes=False)


def read_phoenix14t(root: Path, split: str) -> Corpus:
    """Read a split; ``root`` is the folder that was unpacked, or one of the two inside it.

    Raises :class:`CorpusError` when its annotation is not there or cannot be read.
    """
    refuse_split(NAME, split, tuple(ROWS))
    file = f"annotations/manual/PHOENIX-2014-T.{split}.corpus.csv"
    anchor = find_anchor(NAME, root, _ANCHORS, file)
    annotation = read_lines(anchor / file, ("name", "speaker", "translation"), form=_FORM)
    place = f"{_PLACE}/{split}"
    tree, texts = Tree(anchor / place), TextReader(published=True)
    rows, rejected = accept(
        annotation.lines, "name", lambda n, fields: _row(n, fields, tree, texts, place, split)
    )
    flagged = flag_scripts(rows, (fields["translation"] for _, fields in annotation.fields))
    named = {fields["name"] for _, fields in annotation.fields}
    return Corpus(
        name=NAME,
        root=anchor.resolve().name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints=False,
        orphans=tuple(sorted(unmatched(flagged, names_in(anchor / place), named, place))),
        notes=(*texts.notes, *count_note(NAME, split, len(annotation.lines), ROWS[split])),
    )


def _row(
    number: int, fields: Fields, tree: Tree, texts: TextReader, place: str, split: str
) -> ClipRow:
    for column in ("start", "end"):
        if fields.get(column, "-1") != "-1":
            raise CorpusError(
                f"bad time: {column} {fields[column]!r} is not -1; a row of this corpus is its "
                "whole folder"
            )
    return ClipRow(
        row=number,
        id=fields["name"],
        video=tree.find(fields["name"], "name"),
        source=f"{place}/{fields['name']}",
        text=texts.read(fields["translation"]),
        start=None,
        end=None,
        signer=fields["speaker"] or None,
        language="de",
        split=split,
        joints=None,
        folder=FRAMES,
    )
