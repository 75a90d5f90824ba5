"""CSL-Daily as it is unpacked (shards/csl_daily.md).

``split_1.txt`` says which clips a split has: its lines are the rows. Their texts are in the pickle
``csl2020ct_v2.pkl``, or in ``video_map.txt`` where the pickle is missing; text is the characters
joined, punctuation as it is. The pickle comes from the internet and is read as plain data alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.corpora.plain_pickle import PickleError, load_plain
from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    Orphan,
    accept,
    annotated,
    count_note,
    find_anchor,
    flag_scripts,
    inside,
    names_in,
    refuse_split,
    unmatched,
)
from signfuse_dist.corpora.tables import Lines, cut_at, read_lines

NAME = "csl_daily"
ROWS = {"train": 18401, "dev": 1077, "test": 1176}
"""Rows of each split as published."""
FRAMES = FolderFrames(fps=30.0, suffix=".jpg")

_ANCHORS = ("", "CSL-Daily")
_LABELS = "sentence_label"
_SPLITS, _PICKLE, _MAP = "split_1.txt", "csl2020ct_v2.pkl", "video_map.txt"
_PLACES = ("sentence/frames_512x512", "sentence_frames-512x512", "sentences/frames_512x512")
_SIGNER = re.compile(r"_(P[0-9]+)_")
_MAX_CHARACTERS = 1000  # of a sentence; a pickle can make one list the text of a million clips


@dataclass(frozen=True)
class _Annotation:
    """The annotated side: characters by the clip's name, unchecked, and what has no name."""

    file: str
    characters: Mapping[str, object]
    orphans: tuple[Orphan, ...]


def read_csl_daily(root: Path, split: str) -> Corpus:
    """Read a split; ``root`` is the folder with ``sentence_label``, or the one around it.

    Raises :class:`CorpusError` when an annotation is not there, cannot be read, or holds more than
    plain data.
    """
    refuse_split(NAME, split, tuple(ROWS))
    anchor = find_anchor(NAME, root, _ANCHORS, f"{_LABELS}/{_SPLITS}")
    found = read_lines(anchor / _LABELS / _SPLITS, cut_at("|"), ("name", "split"), "|")
    annotation = _annotation(anchor / _LABELS)
    place = _place(anchor)
    first = {fields["name"]: number for number, fields in reversed(found.fields)}

    def to_row(number: int, fields: Fields) -> ClipRow:
        if first[fields["name"]] != number:
            raise CorpusError(
                f"duplicate id: line {first[fields['name']]} has {fields['name']!r} as well"
            )
        return _row(number, fields["name"], annotation, anchor, place, split)

    chosen = _chosen(found, split)
    rows, rejected = accept(chosen, "name", to_row)
    flagged = flag_scripts(rows, (row.text for row in rows))
    names = [fields["name"] for _, fields in chosen if not isinstance(fields, str)]
    orphans = [
        *unmatched(
            flagged, names_in(anchor / place), first.keys() | annotation.characters.keys(), place
        ),
        *_annotation_orphans(annotation, first, names, split),
    ]
    return Corpus(
        name=NAME,
        root=anchor.resolve().name,
        split=split,
        rows=flagged,
        rejected=tuple(rejected),
        has_joints=False,
        orphans=tuple(sorted(orphans)),
        notes=tuple(count_note(NAME, split, len(chosen), ROWS[split])),
    )


def _annotation(folder: Path) -> _Annotation:
    if (folder / _PICKLE).exists():
        return _from_pickle(folder / _PICKLE)
    if (folder / _MAP).exists():
        return _from_map(folder / _MAP)
    raise CorpusError(f"{NAME}: no annotation; looked for {folder / _PICKLE}, {folder / _MAP}")


def _from_pickle(path: Path) -> _Annotation:
    try:
        content = load_plain(path.read_bytes())
    except OSError as error:
        raise CorpusError(f"pickle {path}: cannot be read ({error.strerror})") from error
    except PickleError as error:
        raise CorpusError(
            f"pickle {path}: {error}; fetch it again, or move it away: the texts are in {_MAP}, too"
        ) from error
    info = content.get("info") if isinstance(content, dict) else None
    if not isinstance(info, list):
        raise CorpusError(f"pickle {path}: it has no list `info` of clips")
    entries = [entry if isinstance(entry, dict) else {} for entry in info]
    named = [(f"entry {n}", e.get("name"), e.get("label_char")) for n, e in enumerate(entries)]
    return _gathered(path.name, named)


def _from_map(path: Path) -> _Annotation:
    found = read_lines(path, cut_at("|"), ("name", "char"), "|")
    named = [
        (f"line {number}", None, None)
        if isinstance(fields, str)
        else (f"line {number}", fields["name"], fields["char"].split(" "))
        for number, fields in found.lines
    ]
    return _gathered(path.name, named)


def _gathered(file: str, named: Sequence[tuple[str, object, object]]) -> _Annotation:
    characters: dict[str, object] = {}
    orphans: set[Orphan] = set()
    for place, name, label in named:
        if not isinstance(name, str):
            orphans.add(Orphan(f"no name: {file} does not say which clip it annotates", place))
        elif name in characters:
            orphans.add(Orphan(f"annotated twice: {file} has it again, the first is used", name))
        else:
            characters[name] = label
    return _Annotation(file, characters, tuple(orphans))


def _place(anchor: Path) -> str:
    there = [place for place in _PLACES if (anchor / place).is_dir()]
    if len(there) > 1:
        raise CorpusError(f"{NAME}: frames lie in {' and '.join(there)} of {anchor}; keep one")
    return there[0] if there else _PLACES[0]


def _chosen(found: Lines, split: str) -> list[tuple[int, Fields | str]]:
    """Return the lines of ``split``, and those of which nobody can say whose they are."""
    lines: list[tuple[int, Fields | str]] = []
    for number, fields in found.lines:
        if isinstance(fields, str):
            lines.append((number, fields))
        elif fields["split"] not in ROWS:
            lines.append((number, f"its split {fields['split']!r} is none of {', '.join(ROWS)}"))
        elif fields["split"] == split:
            lines.append((number, fields))
    return lines


def _row(
    number: int, name: str, annotation: _Annotation, anchor: Path, place: str, split: str
) -> ClipRow:
    if name not in annotation.characters:
        raise CorpusError(f"no annotation: {name} is in {_SPLITS} and not in {annotation.file}")
    signer = _SIGNER.search(name)
    return ClipRow(
        row=number,
        id=name,
        video=inside(anchor / place, name, "name"),
        source=f"{place}/{name}",
        text=_text(annotation.characters[name]),
        start=None,
        end=None,
        signer=signer[1] if signer else None,
        language="zh",
        split=split,
        joints=None,
        folder=FRAMES,
    )


def _text(characters: object) -> str:
    if not isinstance(characters, (list, tuple)):
        raise CorpusError("malformed row: it has no list of characters")
    if len(characters) > _MAX_CHARACTERS:
        raise CorpusError(f"malformed row: more than {_MAX_CHARACTERS} characters")
    if not all(isinstance(c, str) and len(c) <= _MAX_CHARACTERS for c in characters):
        raise CorpusError("malformed row: its characters are no strings")
    text = "".join(characters)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CorpusError("malformed row: its text holds half of a character")
    return annotated(text)


def _annotation_orphans(
    annotation: _Annotation, in_splits: Mapping[str, int], names: Sequence[str], split: str
) -> list[Orphan]:
    file, annotated_names = annotation.file, annotation.characters
    return [
        *annotation.orphans,
        *(
            Orphan(f"no split: annotated in {file}, and not in {_SPLITS}", name)
            for name in annotated_names
            if name not in in_splits
        ),
        *(
            Orphan(f"no annotation: in {split} of {_SPLITS}, and not in {file}", name)
            for name in dict.fromkeys(names)
            if name not in annotated_names
        ),
    ]
