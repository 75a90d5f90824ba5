"""OpenASL as it is published: a table of clips of YouTube videos, and the signer's box in each.

``openasl-v1.0.tsv`` has the clip's id ``vid``, the video's ``yid``, ``start`` and ``end`` as
HH:MM:SS.mmm, ``raw-text`` and ``split``; ``bbox-v1.0.json`` maps a ``vid`` to ``[x0, y0, x1, y1]``,
shares of the picture. Videos are ``<yid>.mp4``, in the root or in a folder of it. Many have
vanished: rows without a file are orphans, one a video.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from signfuse_dist.corpora.rows import (
    Box,
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    Orphan,
    TextReader,
    Tree,
    accept,
    boxed,
    check_window,
    find_anchor,
    flag_scripts,
    names_in,
    read_published_json,
    refuse_split,
)
from signfuse_dist.corpora.tables import Form, Lines, read_lines

NAME = "openasl"
SPLITS = ("train", "valid", "test")
_ALIKE = {"dev": "valid", "val": "valid"}
TABLE, BOXES = "openasl-v1.0.tsv", "bbox-v1.0.json"
_ANCHORS = ("", "data", "OpenASL/data")
_PLACES = ("", "videos", "raw", "video")
_FORM = Form(("\t",), quotes=False)
_TIME = re.compile(r"([0-9]{1,3}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,6})?)")
_MOST_BYTES = 1 << 28


def read_openasl(root: Path, split: str) -> Corpus:
    """Read a split; ``root`` is the repository's folder with ``data``, or the one with the table.

    Raises :class:`CorpusError` when the table is not there, or a file cannot be read.
    """
    refuse_split(NAME, split, (*SPLITS, *_ALIKE))
    asked = _ALIKE.get(split, split)
    anchor = find_anchor(NAME, root, _ANCHORS, TABLE)
    table = read_lines(
        anchor / TABLE, ("vid", "yid", "start", "end", "raw-text", "split"), form=_FORM
    )
    folder = _videos(root, anchor)
    there, boxes = names_in(folder, ".mp4"), _boxes(anchor / BOXES)
    tree, texts = Tree(folder), TextReader(published=True)
    chosen = _chosen(table, asked)
    if not any(not isinstance(fields, str) for _, fields in chosen):
        known = sorted({fields["split"] for _, fields in table.fields})
        raise CorpusError(f"table {table.path}: no row of split {split!r}; it has {known}")

    def to_row(number: int, fields: Fields) -> ClipRow:
        start, end = _seconds(fields, "start"), _seconds(fields, "end")
        check_window(start, end)
        return ClipRow(
            row=number,
            id=fields["vid"],
            video=tree.find(f"{fields['yid']}.mp4", "yid"),
            source=f"{fields['yid']}.mp4",
            text=texts.read(fields["raw-text"]),
            start=start,
            end=end,
            signer=None,
            language="en",
            split=split,
            joints=None,
            box=_box(boxes, fields["vid"]),
        )

    rows, rejected = accept(chosen, "vid", to_row)
    flagged = flag_scripts(rows, (fields["raw-text"] for _, fields in table.fields))
    named = {fields["yid"] for _, fields in table.fields}
    missing = {row.source for row in flagged} - there
    orphans = [
        *(Orphan("no video: it is not there any more, or was not loaded", m) for m in missing),
        *(
            Orphan("no row: no row of any split names the video", name)
            for name in there
            if name.removesuffix(".mp4") not in named
        ),
    ]
    unboxed = sum(row.box is None for row in flagged)
    note = f"{unboxed} of {len(flagged)} clips have no box in {BOXES}"
    return Corpus(
        name=NAME,
        root=anchor.resolve().name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints=False,
        orphans=tuple(sorted(orphans)),
        notes=(*texts.notes, *([note] if unboxed else [])),
    )


def _chosen(table: Lines, split: str) -> list[tuple[int, Fields | str]]:
    """Return the lines of ``split``, and those of which nobody can say whose they are."""
    lines: list[tuple[int, Fields | str]] = []
    for number, fields in table.lines:
        if isinstance(fields, str):
            lines.append((number, fields))
            continue
        named = _ALIKE.get(fields["split"], fields["split"])
        if named == split:
            lines.append((number, fields))
        elif named not in SPLITS:
            lines.append((number, f"its split {fields['split']!r} is none of {', '.join(SPLITS)}"))
    return lines


def _videos(root: Path, anchor: Path) -> Path:
    """Return the first folder that holds a video, else the root."""
    for folder in (*(root / place for place in _PLACES), *(anchor / place for place in _PLACES)):
        if names_in(folder, ".mp4"):
            return folder
    return root


def _seconds(fields: Fields, column: str) -> float:
    written = _TIME.fullmatch(fields[column])
    if written is None:
        raise CorpusError(f"bad time: {column} {fields[column][:40]!r} is not HH:MM:SS.mmm")
    return 3600 * int(written[1]) + 60 * int(written[2]) + float(written[3])


def _boxes(path: Path) -> Mapping[str, object]:
    """Return what the file of boxes holds; nothing where there is no such file."""
    try:
        boxes = read_published_json(path, _MOST_BYTES, "boxes")
    except FileNotFoundError:
        return {}
    if not isinstance(boxes, dict):
        raise CorpusError(f"boxes {path}: is no object of vid -> [x0, y0, x1, y1]")
    return boxes


def _box(boxes: Mapping[str, object], clip: str) -> Box | None:
    edges = boxes.get(clip)
    if edges is None:
        return None
    if not isinstance(edges, list) or not all(type(edge) in (int, float) for edge in edges):
        raise CorpusError(f"bad box: {edges!r:.80} is not [x0, y0, x1, y1]")
    # Detectors go a little over the rim; a part of the picture does not.
    return boxed(" ".join(str(min(max(float(edge), 0.0), 1.0)) for edge in edges))
