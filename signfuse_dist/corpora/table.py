"""The corpora ``table`` and ``synthetic``.

``table``: ROOT is a UTF-8 TSV with a header: ``id``, ``video`` (a file or a folder of frames,
relative to the table), ``text``, and optionally ``start``, ``end`` (seconds), ``signer``,
``split``, ``language``, ``joints`` (an ``.npz`` relative to the table) and ``box`` (where the
signer is: ``x0 y0 x1 y1`` as shares of the picture). Fields are taken as
they stand: a quote is a quote.

``synthetic``: ROOT is a folder where the invented corpus is written on first use; it ends as a
table of the same form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePath

from signfuse_dist.corpora.rows import (
    VIDEO_SUFFIXES,
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    Orphan,
    accept,
    annotated,
    boxed,
    check_window,
    flag_scripts,
    inside,
    names_in,
    seconds,
    unmatched,
)
from signfuse_dist.corpora.tables import Lines, cut_at, read_lines, refuse_twice

_REQUIRED = ("id", "video", "text")
_OPTIONAL = ("start", "end", "signer", "language", "split", "joints", "box")


def read_table(
    table: Path, split: str, name: str = "table", root_name: str | None = None
) -> Corpus:
    """Read a table. Without a ``split`` column its rows belong to whatever split is asked for.

    A row that is malformed may belong to any split, so each split lists it as rejected. Raises
    :class:`CorpusError` when the table cannot be read or has no row of ``split``.
    """
    content = read_lines(table, cut_at("\t"), _REQUIRED, "tabs")
    refuse_twice(table, content.columns, _OPTIONAL)
    chosen = [(n, f) for n, f in content.lines if isinstance(f, str) or _split(f, split) == split]
    if all(isinstance(fields, str) for _, fields in chosen):
        raise CorpusError(_no_rows(content, split))
    folder = table.parent
    rows, rejected = accept(chosen, "id", lambda n, fields: _row(n, fields, folder, split))
    flagged = flag_scripts(rows, (fields["text"] for _, fields in content.fields))
    return Corpus(
        name=name,
        root=root_name or table.name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints="joints" in content.columns,
        orphans=_orphans(folder, flagged, {fields["video"] for _, fields in content.fields}),
    )


def read_synthetic(root: Path, split: str) -> Corpus:
    """Read the drawn corpus in the folder ``root``, which is drawn there when it is not."""
    from signfuse_dist.synthetic import corpus

    if not corpus.is_written(root):
        corpus.write_corpus(root)
    table = root / "synthetic.tsv"
    return read_table(table, split, name="synthetic", root_name=root.resolve().name)


def _split(fields: Fields, asked: str) -> str:
    return fields.get("split", asked)


def _row(number: int, fields: Fields, folder: Path, split: str) -> ClipRow:
    text = annotated(fields["text"])
    start, end = seconds(fields, "start"), seconds(fields, "end")
    check_window(start, end)
    return ClipRow(
        row=number,
        id=fields["id"],
        video=inside(folder, fields["video"], "video"),
        source=fields["video"],
        text=text,
        start=start,
        end=end,
        signer=fields.get("signer") or None,
        language=fields.get("language") or None,
        split=split,
        joints=inside(folder, fields["joints"], "joints") if "joints" in fields else None,
        box=boxed(fields.get("box", "")),
    )


def _orphans(folder: Path, rows: Sequence[ClipRow], written: Iterable[str]) -> tuple[Orphan, ...]:
    """Look into the folders in which the rows' videos lie, for videos that no row names."""
    named: dict[PurePath, set[str]] = {}
    for path in map(PurePath, written):  # a folder on the way to a video is named, too
        for part in (path, *path.parents[:-1]):
            named.setdefault(part.parent, set()).add(part.name)
    by_place: dict[PurePath, list[ClipRow]] = {}
    for row in rows:
        by_place.setdefault(PurePath(row.source).parent, []).append(row)
    orphans: list[Orphan] = []
    for place, beside in by_place.items():
        there = _videos_in(folder / place, {row.video.name for row in beside})
        orphans += unmatched(beside, there, named[place], place.as_posix())
    return tuple(sorted(orphans))


def _videos_in(folder: Path, names: Collection[str]) -> set[str]:
    """Return what is a video in ``folder``; a folder counts only where one of ``names`` is one."""
    folders, files = names_in(folder), names_in(folder, "")
    videos = {name for name in files - folders if PurePath(name).suffix.lower() in VIDEO_SUFFIXES}
    return (files & set(names)) | videos | (folders if folders & set(names) else set())


def _no_rows(content: Lines, split: str) -> str:
    splits = Counter(_split(fields, split) for _, fields in content.fields)
    named = ", ".join(f"{name!r} ({n})" for name, n in sorted(splits.items())) or "none"
    message = f"table {content.path}: no row of split {split!r}; its splits are {named}"
    malformed = [(number, what) for number, what in content.lines if isinstance(what, str)]
    if malformed:
        number, what = malformed[0]
        message += f"; {len(malformed)} rows are malformed, the first: line {number}, {what}"
    return message
