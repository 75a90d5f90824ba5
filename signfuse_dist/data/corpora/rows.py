"""What a corpus is once it is read: rows to pack, rows refused with a reason, and orphans.

What every importer asks of an id, a text, a time and a path is here, so that all corpora refuse
the same things in the same words.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from signfuse_dist.errors import UserError

Fields = Mapping[str, str]
"""A row of a text table, by column."""

_KEY_BYTES = 240  # a member's file name is the key and at most 12 bytes, and 255 is the limit


class CorpusError(UserError):
    """A corpus cannot be read at all."""


class FolderFrames(NamedTuple):
    """What a corpus knows of its folders of frames, and what no such folder says of itself."""

    fps: float | None
    suffix: str | None
    """The ending of the files that are frames, with its dot; any other file is a stray."""


@dataclass(frozen=True)
class Row:
    """A clip as the corpus names it; nothing of it has been opened yet."""

    row: int
    """Line number in the table, the header being line 1."""
    id: str
    video: Path
    source: str
    """The video as the table writes it, or its path inside the corpus's folder."""
    text: str
    start: float | None
    end: float | None
    signer: str | None
    language: str | None
    split: str
    joints: Path | None
    flags: tuple[str, ...] = ()
    folder: FolderFrames | None = None
    """None where the corpus does not know the rate of a folder's frames."""


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
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    has_joints: bool
    orphans: tuple[Orphan, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user must know of the corpus as a whole; printed when it is packed."""


def key_of(clip_id: str) -> str:
    """Return the id percent-encoded, without '.' or '/', as the name of its members in a tar."""
    return quote(clip_id, safe="").replace(".", "%2E")


def accept(
    lines: Iterable[tuple[int, Fields | str]],
    id_column: str,
    to_row: Callable[[int, Fields], Row],
) -> tuple[list[Row], list[Rejected]]:
    """Turn each numbered line into a row, or into a rejected one with the reason.

    A line is its fields, or a string that says why it has none. ``to_row`` raises
    :class:`CorpusError` with the reason.
    """
    rows: list[Row] = []
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
    if not clip_id.strip():
        raise CorpusError("empty id")
    if _has_control(clip_id):
        raise CorpusError(f"bad id: {clip_id!r} holds a control character")
    if "/" in clip_id or "\\" in clip_id or ".." in clip_id:
        raise CorpusError(f"bad id: {clip_id!r} holds a path; no id may hold / \\ or ..")
    if len(key_of(clip_id)) > _KEY_BYTES:
        raise CorpusError(f"bad id: takes more than {_KEY_BYTES} bytes when percent-encoded")
    if clip_id in seen:
        raise CorpusError(f"duplicate id: {clip_id!r}, the first row that has it is kept")


def _has_control(text: str) -> bool:
    """Say whether ``text`` holds what no name may: line ends, controls, halves of a character."""
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def annotated(text: str) -> str:
    """Return the text as it is annotated, in Unicode's form NFC and otherwise untouched."""
    if not text.strip():
        raise CorpusError("empty text")
    return unicodedata.normalize("NFC", text)


def seconds(fields: Fields, column: str) -> float | None:
    """Return the time in ``column``, None where the column or the field is empty."""
    written = fields.get(column, "").strip()
    if not written:
        return None
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise CorpusError(f"bad time: {column} {written!r} is not a time in seconds")
    return value


def check_window(start: float | None, end: float | None) -> None:
    """Raise :class:`CorpusError` when the end is not after the start."""
    if end is not None and end <= (start or 0.0):
        raise CorpusError(f"bad time: end {end:g} s is not after start {start or 0.0:g} s")


def inside(folder: Path, written: str, column: str) -> Path:
    """Return the path of a file inside ``folder``; links are followed to see where they lead."""
    if not written.strip():
        raise CorpusError(f"bad path: the {column} path is empty")
    path = Path(written)
    if path.is_absolute() or ".." in path.parts or _has_control(written):
        raise CorpusError(f"bad path: {column} {written!r} leaves the corpus's folder")
    try:
        leaves = not (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        leaves = True
    if leaves:
        raise CorpusError(f"bad path: {column} {written!r} is a link out of the corpus's folder")
    return folder / path
