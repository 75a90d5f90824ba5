"""What a corpus is once it is read: rows to pack, rows refused with a reason, and orphans.

What every importer asks of an id, a text and its script, a time, a path and the folders on disk is
here, so that all corpora refuse the same things in the same words.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

from signfuse_dist.corpora.characters import (
    BLANKS,
    code_point,
    find_control,
    is_blank,
    is_plain_name,
    is_plain_text,
    script_of,
    visible,
)
from signfuse_dist.errors import UserError, shortened
from signfuse_dist.system_errors import machine_error, machine_fault, unreadable

Fields = Mapping[str, str]
"""A row of a text table, by column."""

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".ts",
    ".mpg",
    ".mpeg",
    ".flv",
    ".asf",
    ".wmv",
    ".ogv",
    ".mxf",
)
"""Endings of the files in a folder that are videos; a video named by itself may have any."""

LEAST_FPS, MOST_FPS = 0.1, 1000.0
"""Frames a second; less or more is no film of a person."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_~-]+")
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_KEY_BYTES = 240  # a member's file name is the key and at most 12 bytes, and 255 is the limit
EMPTY_WORDS = frozenset(("nan", "NaN", "NAN", "None", "NULL", "null", "<NA>", "NaT", "#N/A"))
"""What programs write for an empty cell."""
_SIZE = re.compile(r"([1-9][0-9]{0,4})\s*[x\u00d7]\s*([1-9][0-9]{0,4})")
_LATIN_CONTROL = re.compile("[\x80-\x9f]")
_BREAKS = re.compile(" *[\t\n\r\u2028\u2029]+ *")


class CorpusError(UserError):
    """A corpus cannot be read at all."""


class FolderFrames(NamedTuple):
    """What a corpus knows of its folders of frames, and what no such folder says of itself."""

    fps: float | None
    suffix: str | None
    """The ending of the files that are frames, with its dot; any other file is a stray."""


class Box(NamedTuple):
    """A part of a picture: left, top, right and bottom as shares of the upright picture (0..1).

    A square that is cut around a signer may reach out of the picture.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __str__(self) -> str:
        return " ".join(f"{edge:.4g}" for edge in self)


@dataclass(frozen=True)
class ClipRow:
    """A clip as the corpus names it; nothing of it has been opened yet."""

    row: int
    """Line number in the table, the header being line 1."""
    id: str
    video: Path | None
    """None: a clip of joints alone, of which nobody has pictures."""
    source: str
    """The video, else the joints, as the table writes it, or its path in the corpus's folder."""
    text: str
    start: float | None
    end: float | None
    signer: str | None
    language: str | None
    split: str
    joints: Path | None
    flags: tuple[str, ...] = ()
    folder: FolderFrames | None = None
    """None where the corpus does not know the rate of a folder's frames, or of joints alone."""
    box: Box | None = None
    """Where the signer is, as the corpus says; None: it does not."""
    corpus: str | None = None
    """Which corpus the row is from, where a table holds several; None: it does not say."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the picture that the joints are in; None: their file's, or
    the video's."""
    joints_start: float | None = None
    """Second of the video that the first row of the joints shows; None: they begin with it."""

    @property
    def named_file(self) -> Path:
        """The video, else the file of joints: what an error is about."""
        path = self.video or self.joints
        if path is None:
            raise ValueError(f"row {self.row} has neither a video nor joints")
        return path


@dataclass(frozen=True)
class Rejected:
    """A row that is not packed, and why."""

    row: int
    id: str
    reason: str
    """A kind of fault, and mostly after a colon what it is about."""


@dataclass(frozen=True, order=True)
class Orphan:
    """Something on one side only: a video without a row, an annotation without a split ..."""

    reason: str
    """A kind, and after a colon what is missing."""
    id: str
    """The clip's id, or the name on disk of what has none."""


@dataclass(frozen=True)
class Corpus:
    """The rows of one split, in the table's order."""

    name: str
    root: str
    """Name of the table or folder, without its path."""
    split: str
    rows: tuple[ClipRow, ...]
    rejected: tuple[Rejected, ...]
    has_joints: bool
    orphans: tuple[Orphan, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user must know of the corpus as a whole; printed when it is packed."""
    pose_format: str | None = None
    """How the files of joints are written (:mod:`signfuse_dist.corpora.poses`); None: as this
    package's own ``.npz``."""


def key_of(clip_id: str) -> str:
    """Return the id percent-encoded, without '.' or '/', as the name of its members in a tar."""
    if _PLAIN_KEY.fullmatch(clip_id):  # nearly all of them, and three times faster
        return clip_id
    return quote(clip_id, safe="").replace(".", "%2E")


def accept(
    lines: Iterable[tuple[int, Fields | str]],
    id_column: str,
    to_row: Callable[[int, Fields], ClipRow],
) -> tuple[list[ClipRow], list[Rejected]]:
    """Turn each numbered line into a row, or into a rejected one with the reason.

    A line is its fields, or a string that says why it has none. ``to_row`` raises
    :class:`CorpusError` with the reason.
    """
    rows: list[ClipRow] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, fields in lines:
        if isinstance(fields, str):
            rejected.append(Rejected(number, "", f"malformed row: line {number}, {fields}"))
            continue
        clip_id = fields[id_column]
        try:
            _check_id(clip_id, seen)
            rows.append(to_row(number, fields))
        except CorpusError as error:
            rejected.append(Rejected(number, clip_id, str(error)))
        else:
            seen.add(clip_id)
    return rows, rejected


def _check_id(clip_id: str, seen: set[str]) -> None:
    if is_blank(clip_id):
        raise CorpusError("empty id")
    if not is_plain_name(clip_id):
        raise CorpusError(f"bad id: {clip_id!r} holds a control or an invisible character")
    if "/" in clip_id or "\\" in clip_id or ".." in clip_id:
        raise CorpusError(f"bad id: {clip_id!r} holds a path; no id may hold / \\ or ..")
    if len(key_of(clip_id)) > _KEY_BYTES:
        raise CorpusError(f"bad id: takes more than {_KEY_BYTES} bytes when percent-encoded")
    if clip_id in seen:
        raise CorpusError(f"duplicate id: {clip_id!r}, the first row that has it is kept")


class TextReader:
    """Reads the texts of a corpus, and counts what it takes out of them for :attr:`notes`.

    Published texts keep the controls U+0080 to U+009F that a wrong encoding has left in some, since
    everybody's scores are over those rows; in a table of one's own they can be put right.
    """

    def __init__(self, published: bool = False) -> None:
        self._published = published
        self._num_damaged = 0
        self._invisible: Counter[str] = Counter()
        self._num_invisible = 0
        self._num_broken = 0

    def read(self, written: str) -> str:
        """Return a text as it is stored: in Unicode's form NFC, without what cannot be seen.

        Blanks go from its ends, invisible characters that mean nothing go from everywhere, and a
        line break or tab becomes a blank. Raises :class:`CorpusError` for a text without anything
        to see, for the words of :data:`EMPTY_WORDS`, and for a control character.
        """
        text = written
        plain = is_plain_text(text)
        if not plain:
            control = find_control(_LATIN_CONTROL.sub("", text) if self._published else text)
            if control is not None:
                raise CorpusError(f"bad text: it holds the control character {code_point(control)}")
            text = _BREAKS.sub(" ", visible(text).strip(BLANKS))
        text = unicodedata.normalize("NFC", text.strip(BLANKS))
        if is_blank(text):
            raise CorpusError("empty text")
        if text in EMPTY_WORDS:
            raise CorpusError(f"empty text: {text!r} is what programs write for an empty cell")
        if text != written:
            self._count(written)
        self._num_damaged += bool(not plain and _LATIN_CONTROL.search(text))
        return text

    def _count(self, written: str) -> None:
        seen = visible(written)
        if seen != written:
            self._num_invisible += 1
            self._invisible.update((Counter(written) - Counter(seen)).keys())
        self._num_broken += bool(_BREAKS.search(seen.strip(BLANKS)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken out of the texts, in words."""
        notes = []
        if self._num_invisible:
            letters = ", ".join(map(code_point, sorted(self._invisible)))
            notes.append(
                f"{self._num_invisible} texts held invisible characters ({letters}), which were "
                "removed"
            )
        if self._num_broken:
            notes.append(f"{self._num_broken} texts held line breaks or tabs, which became blanks")
        if self._num_damaged:
            notes.append(
                f"{self._num_damaged} texts hold controls that a wrong encoding has left (U+0080 "
                "to U+009F); they are kept as published"
            )
        return tuple(notes)


def seconds(fields: Fields, column: str) -> float | None:
    """Return the time in ``column``, None where the column or the field is empty."""
    written = fields.get(column, "")
    if not written or written in EMPTY_WORDS:
        return None
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        comma = "; write a point for the comma" if "," in written else ""
        shown = shortened(written)
        raise CorpusError(f"bad time: {column} {shown!r} is not a time in seconds{comma}")
    return value


def check_window(start: float | None, end: float | None) -> None:
    """Raise :class:`CorpusError` when the end is not after the start."""
    if end is not None and end <= (start or 0.0):
        raise CorpusError(f"bad time: end {end:g} s is not after start {start or 0.0:g} s")


def split_by_name(name: str, dev_share: float, test_share: float) -> str:
    """Return the split of what is published without splits: a pure function of its name."""
    place = int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16)
    share = place / 16**13
    if share < test_share:
        return "test"
    return "dev" if share < test_share + dev_share else "train"


def read_published_json(path: Path, most_bytes: int, what: str) -> Any:
    """Return what a published file of JSON holds; ``what`` it is names it in errors.

    Raises :class:`CorpusError` for one that is larger, or is no JSON, and FileNotFoundError.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise CorpusError(f"{what} {path}: larger than {most_bytes} bytes")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(error, f"{what} {path}", CorpusError) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{what} {path}: cannot be read as JSON ({error})") from error


def picture_size(written: str) -> tuple[int, int]:
    """Return width and height of ``WIDTHxHEIGHT``; raise :class:`CorpusError` where it is none."""
    sides = _SIZE.fullmatch(written)
    if sides is None:
        raise CorpusError(f"bad size: {shortened(written)!r} is not WIDTHxHEIGHT in pixels")
    return int(sides[1]), int(sides[2])


def boxed(written: str) -> Box | None:
    """Return the box that four shares make, with blanks or commas between; None for a blank field.

    Raises :class:`CorpusError` for what is no part of a picture.
    """
    parts = written.replace(",", " ").split()
    if not parts:
        return None
    try:
        edges = [float(part) for part in parts]
    except ValueError:
        edges = []
    if len(edges) == len(Box._fields) and all(0 <= edge <= 1 for edge in edges):  # no NaN is
        box = Box(*edges)
        if box.x0 < box.x1 and box.y0 < box.y1:
            return box
    raise CorpusError(
        f"bad box: {shortened(written)!r} is not x0 y0 x1 y1 as shares of the picture, from 0 "
        "to 1, x0 below x1 and y0 below y1"
    )


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def find_anchor(corpus: str, root: Path, folders: Sequence[str], file: str) -> Path:
    """Return the first of ``folders`` under ``root`` that holds the annotation ``file``.

    Raises :class:`CorpusError` naming every path that was looked for.
    """
    anchors = [root / folder for folder in folders]
    for anchor in anchors:
        if (anchor / file).is_file():
            return anchor
    looked = ", ".join(str(anchor / file) for anchor in anchors)
    raise CorpusError(
        f"{corpus}: no annotations under {root}; looked for {looked}. --root is the folder that "
        f"was unpacked, see shards/{corpus.removesuffix('_precut')}.md"
    )


def refuse_split(corpus: str, split: str, splits: Sequence[str]) -> None:
    """Raise :class:`CorpusError` when the corpus was not published with such a split."""
    if split not in splits:
        raise CorpusError(f"split {split!r}: {corpus} has {', '.join(splits)}")


def entries_in(folder: Path) -> dict[str, bool]:
    """Return the names in ``folder``, and whether each is a folder; links are followed.

    A name with a leading dot is left out: desktops put such files beside every video. A folder
    that is not there holds nothing. Raises :class:`CorpusError` when it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return {e.name: _is_folder(e) for e in entries if not e.name.startswith(".")}
    except OSError as error:
        if error.errno in _ABSENT:
            return {}
        raise unreadable(error, f"folder {folder}", CorpusError) from error


def names_in(folder: Path, suffix: str | None = None) -> set[str]:
    """Return the names of the folders in ``folder``, or of what ends with ``suffix``.

    Raises as :func:`entries_in` does.
    """
    entries = entries_in(folder)
    if suffix is None:
        return {name for name, is_folder in entries.items() if is_folder}
    return {name for name in entries if name.endswith(suffix)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, entry.path) from error
        return False  # a link that leads round in a circle


class Tree:
    """A folder of a corpus on the disk, in which rows name what is theirs.

    The rows are anybody's text, so no path leads out of the folder. What lies in it was put there
    by the user, so links are followed. Nothing is opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spellings: dict[Path, dict[str, list[str]]] = {}

    def find(self, written: str, column: str) -> Path:
        """Return the path that a row has ``written`` in ``column``.

        A name that is composed (NFC) in the table and decomposed on the disk, or the reverse, is
        found. Raises :class:`CorpusError` for a path that could lead out, and for a hidden file.
        """
        if _PLAIN_PATH.fullmatch(written):  # nearly all of them
            return self.folder / written
        if not written.strip():
            raise CorpusError(f"bad path: the {column} path is empty")
        parts = written.split("/")
        if written.startswith("/") or ".." in parts or not _is_path(written):
            raise CorpusError(f"bad path: {column} {written!r} leaves the corpus's folder")
        if parts[-1].startswith("."):
            raise CorpusError(f"bad path: {column} {written!r} is hidden by a leading dot")
        if written.isascii():
            return self.folder / written
        path = self.folder
        for part in PurePosixPath(written).parts:
            path = path / self._as_on_disk(path, part)
        return path

    def _as_on_disk(self, folder: Path, name: str) -> str:
        if name.isascii():
            return name
        if folder not in self._spellings:
            spellings = self._spellings[folder] = {}
            for there in entries_in(folder):
                spellings.setdefault(composed(there), []).append(there)
        found = self._spellings[folder].get(composed(name), [])
        return found[0] if found and name not in found else name


def composed(name: str) -> str:
    """Return ``name`` in Unicode's form NFC, by which names of table and disk are compared."""
    return unicodedata.normalize("NFC", name)


def _is_path(written: str) -> bool:
    return written.isprintable() or not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in written
    )


def unmatched(
    rows: Iterable[ClipRow], on_disk: Collection[str], named: Collection[str], place: str
) -> list[Orphan]:
    """Return the videos in no row, and the rows without a video.

    ``on_disk`` are names in the folder ``place``, ``named`` those that any row has.
    """
    known = set(map(composed, named))
    strays = [
        Orphan(f"no row: it lies in {place}, and no row names it", name)
        for name in on_disk
        if composed(name) not in known
    ]
    missing = [
        Orphan(f"no video: {row.source} is not there", row.id)
        for row in rows
        if row.video is not None and row.video.name not in on_disk
    ]
    return [*strays, *missing]


def count_note(corpus: str, split: str, here: int, published: int | None) -> list[str]:
    """Return a note when a split has another number of rows than was published, else nothing."""
    if published is None or here == published:
        return []
    return [f"{split} has {here} rows here; the published {corpus} has {published}"]


# Scripts that are written together: a row in the second is at home in a table of the first.
_MIXED_SCRIPTS = {"KANA": {"HAN"}, "HANGUL": {"HAN"}}


def flag_scripts(rows: Sequence[ClipRow], texts: Iterable[str]) -> tuple[ClipRow, ...]:
    """Flag the rows in another script than most of ``texts``, those of the whole table."""
    times = Counter(texts)
    scripts = {text: script_of(text) for text in times}
    counts: Counter[str] = Counter()
    for text, script in scripts.items():
        if script:
            counts[script] += times[text]
    if not counts:
        return tuple(rows)
    majority = max(counts, key=lambda name: (counts[name], name))
    home = {None, majority, *_MIXED_SCRIPTS.get(majority, ())}
    flagged = []
    for row in rows:
        script = scripts[row.text] if row.text in scripts else script_of(row.text)
        flagged.append(row if script in home else replace(row, flags=(f"script:{script}",)))
    return tuple(flagged)
