"""The corpora ``table`` and ``synthetic``.

``table``: ROOT is a table (:mod:`signfuse_dist.corpora.tables`) with a header: ``id``, ``text``,
and ``video`` (a file or a folder of frames, relative to the table), ``joints`` (an ``.npz``
relative to it), ``poses`` (a file or folder as others publish them:
:mod:`signfuse_dist.corpora.poses`) or a video and one of these. Optionally ``start``, ``end``
(seconds), ``signer``, ``split``, ``language``, ``corpus`` (where the table holds several), ``box``
(where the signer is: ``x0 y0 x1 y1`` as shares of the picture), ``fps`` (of a folder of frames, or
of joints that do not say it) and ``size`` (``WIDTHxHEIGHT`` of the picture that poses in pixels are
in). A row whose ``video`` is empty has joints alone.

``synthetic``: ROOT is a folder where the invented corpus is written on first use; it ends as a
table of the same form.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from signfuse_dist.corpora.characters import visible
from signfuse_dist.corpora.poses import pose_format
from signfuse_dist.corpora.rows import (
    EMPTY_WORDS,
    LEAST_FPS,
    MOST_FPS,
    VIDEO_SUFFIXES,
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    Orphan,
    TextReader,
    Tree,
    accept,
    boxed,
    check_window,
    composed,
    entries_in,
    flag_scripts,
    picture_size,
    seconds,
    unmatched,
)
from signfuse_dist.corpora.tables import Lines, read_lines

_REQUIRED = ("id", "text")
_FILES = ("video", "joints", "poses")
_OPTIONAL = (
    *_FILES,
    *("start", "end", "signer", "language", "corpus", "split", "box", "fps", "size"),
)


def read_table(
    table: Path,
    split: str,
    name: str = "table",
    root_name: str | None = None,
    poses: str | None = None,
) -> Corpus:
    """Read a table. Without a ``split`` column its rows belong to whatever split is asked for.

    A row that is malformed or names no split may belong to any, so each split lists it as rejected.
    ``poses`` says how the files of its column ``poses`` are written; None: their endings do.
    Raises :class:`CorpusError` when the table cannot be read, has no row of ``split``, or has
    splits whose names differ by case alone.
    """
    content = _read(table)
    splits = Counter(_split(fields, split) for _, fields in content.fields)
    _refuse_alike(content, splits)
    chosen = [
        (n, f) for n, f in content.lines if isinstance(f, str) or _split(f, split) in (split, "")
    ]
    if not splits[split]:
        raise CorpusError(_no_rows(content, split, splits))
    tree, texts = Tree(table.parent), TextReader()
    rows, rejected = accept(chosen, "id", lambda n, fields: _row(n, fields, tree, texts, split))
    flagged = flag_scripts(rows, (fields["text"] for _, fields in content.fields))
    written = None
    if "poses" in content.columns:
        files = [f["poses"] for _, f in content.fields if _optional(f, "poses")]
        written = pose_format(files, poses, f"table {table}")
    elif poses is not None:
        raise CorpusError(f"table {table}: has no column `poses`, so --poses {poses} has no use")
    alone = sum(row.video is None for row in flagged)
    notes = [f"{alone} of {len(flagged)} clips have joints alone, and no video"] if alone else []
    return Corpus(
        name=name,
        root=root_name or table.name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints=bool({"joints", "poses"} & set(content.columns)),
        orphans=_orphans(
            table.parent, flagged, (v for _, f in content.fields if (v := _optional(f, "video")))
        ),
        notes=(*content.notes, *texts.notes, *notes, *_other_splits(splits, split)),
        pose_format=written,
    )


def _read(table: Path) -> Lines:
    """Read the table; raise CorpusError for one that names no files, or joints in two ways."""
    content = read_lines(table, _REQUIRED, _OPTIONAL)
    there = [column for column in _FILES if column in content.columns]
    if not there:
        raise CorpusError(
            f"table {table}: no column video, and neither joints nor poses, in its header "
            f"{list(content.columns)!r:.300}"
        )
    if {"joints", "poses"} <= set(there):
        raise CorpusError(f"table {table}: has columns `joints` and `poses`; leave one of them out")
    return content


def splits_of_table(table: Path) -> tuple[str, ...]:
    """Return what the column ``split`` names, in order of first appearance.

    Raises :class:`CorpusError` for a table without that column, or without a row.
    """
    content = _read(table)
    if "split" not in content.columns:
        raise CorpusError(
            f"table {table}: has no column `split`, so all its rows belong to any split that is "
            "asked for; name one"
        )
    splits = tuple(dict.fromkeys(fields["split"] for _, fields in content.fields))
    named = tuple(split for split in splits if split)
    if not named:
        raise CorpusError(f"table {table}: no row names a split")
    return named


def read_synthetic(root: Path, split: str) -> Corpus:
    """Read the drawn corpus in the folder ``root``, which is drawn there when it is not."""
    from signfuse_dist.synthetic import corpus

    if not corpus.is_written(root):
        corpus.write_corpus(root)
    table = root / "synthetic.tsv"
    return read_table(table, split, name="synthetic", root_name=root.resolve().name)


def _split(fields: Fields, asked: str) -> str:
    """Return the split of a row, "" where its cell is empty."""
    split = fields.get("split", asked)
    return "" if split in EMPTY_WORDS else split


def _refuse_alike(content: Lines, splits: Mapping[str, int]) -> None:
    """Raise CorpusError for splits that only case, blanks or what cannot be seen tells apart."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in splits:
        alike[_folded(name)].append(name)
    errors = [
        " and ".join(f"{name!r} ({splits[name]} rows)" for name in sorted(names))
        for names in alike.values()
        if len(names) > 1
    ]
    if errors:
        raise CorpusError(
            f"table {content.path}: splits that are told apart by case or blanks alone: "
            f"{'; '.join(errors)}. Give them one name"
        )


def _folded(split: str) -> str:
    return "".join(visible(split).casefold().split())


def _other_splits(splits: Mapping[str, int], asked: str) -> list[str]:
    others = {name: count for name, count in sorted(splits.items()) if name not in (asked, "")}
    if not others:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in others.items())
    return [f"{sum(others.values())} rows belong to other splits: {named}"]


def _row(number: int, fields: Fields, tree: Tree, texts: TextReader, split: str) -> ClipRow:
    if not _split(fields, split):
        raise CorpusError("empty split: it may belong to any")
    video = None
    if _optional(fields, "video") or not {"joints", "poses"} & fields.keys():
        video = tree.find(fields["video"], "video")
    column = "poses" if "poses" in fields else "joints"
    joints = tree.find(fields[column], column) if column in fields else None
    start, end = seconds(fields, "start"), seconds(fields, "end")
    check_window(start, end)
    return ClipRow(
        row=number,
        id=fields["id"],
        video=video,
        source=fields["video" if video else column],
        text=texts.read(fields["text"]),
        start=start,
        end=end,
        signer=_optional(fields, "signer"),
        language=_optional(fields, "language"),
        split=split,
        joints=joints,
        folder=_folder(fields),
        box=boxed(fields.get("box", "")),
        corpus=_optional(fields, "corpus"),
        size=_size(fields),
    )


def _folder(fields: Fields) -> FolderFrames | None:
    """Return the rate that a row names, for what has none of its own."""
    fps = seconds(fields, "fps")
    if fps is None:
        return None
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise CorpusError(f"bad rate: fps {fps:g} is not from {LEAST_FPS:g} to {MOST_FPS:g}")
    return FolderFrames(fps, None)


def _size(fields: Fields) -> tuple[int, int] | None:
    written = _optional(fields, "size")
    if written is None:
        return None
    return picture_size(written)


def _optional(fields: Fields, column: str) -> str | None:
    value = fields.get(column, "")
    return None if value in EMPTY_WORDS else value or None


def _orphans(folder: Path, rows: Sequence[ClipRow], written: Iterable[str]) -> tuple[Orphan, ...]:
    """Look into the folders in which the rows' videos lie, for videos that no row names."""
    named: dict[str, set[str]] = defaultdict(set)
    for path in written:
        place, name = _place(path)
        named[place].add(name)
    for place in list(named):  # a folder on the way to a video is named, too
        for part in (PurePosixPath(place), *PurePosixPath(place).parents):
            named[str(part.parent)].add(part.name)
    by_place: dict[str, list[ClipRow]] = defaultdict(list)
    for row in rows:
        if row.video is not None:
            by_place[_place(row.source)[0]].append(row)
    orphans: list[Orphan] = []
    for place, beside in by_place.items():
        folder = beside[0].named_file.parent
        there = _videos_in(folder, {row.named_file.name for row in beside})
        orphans += unmatched(beside, there, named[place], place)
    return tuple(sorted(orphans))


def _place(written: str) -> tuple[str, str]:
    """Return the folder and the name of a path; a million rows lie in few folders."""
    place, _, name = written.rpartition("/")
    if name in ("", "."):
        path = PurePosixPath(written)
        return str(path.parent), path.name
    return _as_path(place), name


@cache
def _as_path(place: str) -> str:
    return composed(str(PurePosixPath(place)))


def _videos_in(folder: Path, names: Collection[str]) -> set[str]:
    """Return what is a video in ``folder``; a folder counts only where one of ``names`` is one."""
    entries = entries_in(folder)
    folders = {name for name, is_folder in entries.items() if is_folder}
    videos = {name for name in entries.keys() - folders if name.lower().endswith(VIDEO_SUFFIXES)}
    return (entries.keys() & set(names)) | videos | (folders if folders & set(names) else set())


def _no_rows(content: Lines, split: str, splits: Mapping[str, int]) -> str:
    named = ", ".join(f"{name!r} ({n})" for name, n in sorted(splits.items())) or "none"
    message = f"table {content.path}: no row of split {split!r}; its splits are {named}"
    alike = [name for name in splits if _folded(name) == _folded(split)]
    if alike:
        message += f"; {alike[0]!r} differs from {split!r} by case alone: ask for that"
    malformed = [(number, what) for number, what in content.lines if isinstance(what, str)]
    if malformed:
        number, what = malformed[0]
        message += f"; {len(malformed)} rows are malformed, the first: line {number}, {what}"
    return message
