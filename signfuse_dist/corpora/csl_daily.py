"""CSL-Daily as it is unpacked (shards/csl_daily.md).

``split_1.txt`` says which clips a split has: its lines are the rows. Their texts are in the pickle
``csl2020ct_v2.pkl``, or in ``video_map.txt`` where the pickle is missing; text is the characters
joined, punctuation as it is. The pickle comes from the internet and is read as plain data alone,
by :func:`load_plain`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    Orphan,
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
from signfuse_dist.corpora.tables import Form, Lines, read_lines
from signfuse_dist.files import special_kind
from signfuse_dist.system_errors import unreadable

NAME = "csl_daily"
ROWS = {"train": 18401, "dev": 1077, "test": 1176}
"""Rows of each split as published."""
FRAMES = FolderFrames(fps=30.0, suffix=".jpg")

_ANCHORS = ("", "CSL-Daily")
_LABELS = "sentence_label"
_SPLITS, _PICKLE, _MAP = "split_1.txt", "csl2020ct_v2.pkl", "video_map.txt"
_PLACES = ("sentence/frames_512x512", "sentence_frames-512x512", "sentences/frames_512x512")
_FORM = Form(("|",), quotes=False)
_SIGNER = re.compile(r"_(P[0-9]+)_")
_MAX_CHARACTERS = 1000  # of a sentence; a pickle can make one list the text of a million clips
# Bounds of what is unpickled; the published file has 6 MB, no tuple, and words for its values.
_MAX_BYTES, _MAX_VALUE, _MAX_BITS, _MAX_TUPLES = 2**28, 10_000, 64, 1000
PLAIN_OPCODES = frozenset(
    name
    for names in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE",
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT",
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE",
        "BINBYTES BINBYTES8 SHORT_BINBYTES",
        "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS",
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3",
        "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET",
    )
    for name in names.split()
)
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


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
    splits = read_lines(anchor / _LABELS / _SPLITS, ("name", "split"), form=_FORM)
    annotation = _annotation(anchor / _LABELS)
    place = _place(anchor)
    tree, texts = Tree(anchor / place), TextReader(published=True)
    first = {fields["name"]: number for number, fields in reversed(splits.fields)}

    def to_row(number: int, fields: Fields) -> ClipRow:
        if first[fields["name"]] != number:
            raise CorpusError(
                f"duplicate id: line {first[fields['name']]} has {fields['name']!r} as well"
            )
        return _row(number, fields["name"], annotation, tree, texts, place, split)

    chosen = _chosen(splits, split)
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
        notes=(*texts.notes, *count_note(NAME, split, len(chosen), ROWS[split])),
    )


def _annotation(folder: Path) -> _Annotation:
    if (folder / _PICKLE).exists():
        return _from_pickle(folder / _PICKLE)
    if (folder / _MAP).exists():
        return _from_map(folder / _MAP)
    raise CorpusError(f"{NAME}: no annotation; looked for {folder / _PICKLE}, {folder / _MAP}")


def _from_pickle(path: Path) -> _Annotation:
    kind = special_kind(path)
    if kind:
        raise CorpusError(f"pickle {path}: is {kind} and no file; it is not opened")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorpusError(f"pickle {path}: has more than {_MAX_BYTES} bytes")
        content = load_plain(path.read_bytes())
    except OSError as error:
        raise unreadable(error, f"pickle {path}", CorpusError) from error
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
    mapped = read_lines(path, ("name", "char"), form=_FORM)
    named = [
        (f"line {number}", None, None)
        if isinstance(fields, str)
        else (f"line {number}", fields["name"], fields["char"].split(" "))
        for number, fields in mapped.lines
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


def _chosen(splits: Lines, split: str) -> list[tuple[int, Fields | str]]:
    """Return the lines of ``split``, and those of which nobody can say whose they are."""
    lines: list[tuple[int, Fields | str]] = []
    for number, fields in splits.lines:
        if isinstance(fields, str):
            lines.append((number, fields))
        elif fields["split"] not in ROWS:
            lines.append((number, f"its split {fields['split']!r} is none of {', '.join(ROWS)}"))
        elif fields["split"] == split:
            lines.append((number, fields))
    return lines


def _row(
    number: int,
    name: str,
    annotation: _Annotation,
    tree: Tree,
    texts: TextReader,
    place: str,
    split: str,
) -> ClipRow:
    if name not in annotation.characters:
        raise CorpusError(f"no annotation: {name} is in {_SPLITS} and not in {annotation.file}")
    signer = _SIGNER.search(name)
    return ClipRow(
        row=number,
        id=name,
        video=tree.find(name, "name"),
        source=f"{place}/{name}",
        text=texts.read(_joined(annotation.characters[name])),
        start=None,
        end=None,
        signer=signer[1] if signer else None,
        language="zh",
        split=split,
        joints=None,
        folder=FRAMES,
    )


def _joined(characters: object) -> str:
    if not isinstance(characters, (list, tuple)):
        raise CorpusError("malformed row: it has no list of characters")
    if len(characters) > _MAX_CHARACTERS:
        raise CorpusError(f"malformed row: more than {_MAX_CHARACTERS} characters")
    if not all(isinstance(c, str) and len(c) <= _MAX_CHARACTERS for c in characters):
        raise CorpusError("malformed row: its characters are no strings")
    text = "".join(characters)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CorpusError("malformed row: its text holds half of a character")
    return text


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


class PickleError(ValueError):
    """A pickle that is damaged, or that holds more than plain data."""


def load_plain(content: bytes) -> Any:
    """Return the lists, dicts, tuples, strings, bytes, numbers, bools and None of a pickle.

    A pickle is a program. Before it runs, its opcodes are parsed: those that build plain data are
    let through, and every other one is refused by name, so that no class, function or persistent
    id is looked up. An unpickler without globals can still be ended by a plain pickle, hence three
    bounds: a place of the memo is below the number of opcodes so far (it allocates what is named),
    there are at most 1000 tuples (a nest of them is hashed by recursion without a limit), and
    values are short (long keys are compared over and over). Raises :class:`PickleError`.
    """
    try:
        _refuse_more_than_plain(content)
        return _PlainUnpickler(io.BytesIO(content)).load()
    except PickleError:
        raise
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        EOFError,
        OverflowError,
    ) as error:
        raise PickleError(f"it is damaged ({error})") from error


def _refuse_more_than_plain(content: bytes) -> None:
    tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if name not in PLAIN_OPCODES:
            raise PickleError(f"it holds more than plain data (opcode {name})")
        if argument is None:
            tuples += name in _TUPLES
            if tuples > _MAX_TUPLES:
                raise PickleError(f"it holds more than plain data (more than {_MAX_TUPLES} tuples)")
        elif name in _PUTS:
            if argument > number:
                raise PickleError(f"it holds more than plain data (place {argument} of its memo)")
        elif isinstance(argument, (str, bytes)):
            if len(argument) > _MAX_VALUE:
                raise PickleError(f"it holds more than plain data (a value of {len(argument)})")
        elif isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
            raise PickleError(f"it holds more than plain data (a number above 2^{_MAX_BITS})")


class _PlainUnpickler(pickle.Unpickler):
    """Finds no class and no object outside the pickle, whatever its opcodes ask for."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise PickleError(f"it holds more than plain data ({module_name}.{global_name})")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise PickleError("it holds more than plain data (a persistent id)")
