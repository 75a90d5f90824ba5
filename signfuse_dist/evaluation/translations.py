"""Translations as files: hypotheses and references of anybody, arrays by clip, and which are shown.

``hypotheses.jsonl`` has a line ``{"id", "hypothesis", "reference"}`` a clip; a table (``.tsv``,
``.csv``, ``.xlsx``) has such columns; plain text files (``.txt``) are matched line by line. Texts
are compared as packing stores them: in NFC, without invisible characters. ``gates.npz`` and
``attention.npz`` hold an array a name.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from pydantic import AfterValidator, AliasChoices, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.corpora.characters import visible
from signfuse_dist.corpora.rows import composed
from signfuse_dist.corpora.tables import RawTable, read_raw
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.metrics import sentence_chrf
from signfuse_dist.files import special_kind, unreadable, write_bytes
from signfuse_dist.records import build, dotted

Column = Literal["hypothesis", "reference"]
_TABLES = (".tsv", ".csv", ".xlsx")
_STRUCTURED = (".jsonl", *_TABLES)
_SHOWN_ERRORS = 20


def _check_text(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, which is no text")
    return text


_Text = Annotated[str, AfterValidator(_check_text)]


@pydantic_dataclass(frozen=True)
class _Hypothesis:
    """A row of which the hypothesis is read; other columns are ignored."""

    id: _Text = Field(validation_alias=AliasChoices("id", "name"))
    text: _Text = Field(validation_alias=AliasChoices("hypothesis"))


@pydantic_dataclass(frozen=True)
class _Reference:
    """A row of which the reference is read, such as one of a packing table."""

    id: _Text = Field(validation_alias=AliasChoices("id", "name"))
    text: _Text = Field(validation_alias=AliasChoices("reference", "text"))


_Row = _Hypothesis | _Reference
_KINDS: Mapping[Column, type[_Row]] = {"hypothesis": _Hypothesis, "reference": _Reference}


_COLUMNS: Mapping[Column, tuple[str, ...]] = {
    "hypothesis": ("id", "name", "hypothesis"),
    "reference": ("id", "name", "reference", "text"),
}


def read_pairs(
    hypotheses: Path, references: Path | None, notes: list[str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return hypotheses and references by id, each in the order of its file.

    ``references`` None means that the hypotheses' file has both columns. What was changed in
    reading is added to ``notes``. Raises :class:`UserError` for a file that cannot be read or whose
    ending is not known, a malformed line, a duplicate id, or two plain files with different numbers
    of lines.
    """
    source = hypotheses if references is None else references
    structured = [_is_structured(path) for path in (hypotheses, source)]
    if references is None and not structured[0]:
        raise UserError(
            f"{hypotheses}: a plain text file holds no references; name a second file with "
            f"--references, or give a file that has both: {', '.join(_STRUCTURED)}"
        )
    if structured[0] != structured[1]:
        raise UserError(
            f"{hypotheses} and {source}: one is plain text, whose ids are line numbers, and the "
            f"other names its ids; give two .txt files, or two of {', '.join(_STRUCTURED)}"
        )
    notes = [] if notes is None else notes
    ours = read_column(hypotheses, "hypothesis", notes)
    theirs = read_column(source, "reference", notes)
    if not structured[0] and len(ours) != len(theirs):
        raise UserError(
            f"{hypotheses} has {len(ours)} lines and {source} has {len(theirs)}: "
            "plain text files are matched line by line"
        )
    return ours, theirs


def _is_structured(path: Path) -> bool:
    """Say whether a file names its ids; raise UserError for an ending that is not known."""
    suffix = path.suffix.lower()
    if suffix not in (*_STRUCTURED, ".txt"):
        raise UserError(
            f"{path}: files of the ending {suffix!r} are not read; a table is .tsv, .csv or .xlsx, "
            "JSON lines are .jsonl, and one sentence a line is .txt"
        )
    return suffix in _STRUCTURED


def read_column(path: Path, column: Column, notes: list[str] | None = None) -> dict[str, str]:
    """Return one column of a file by id; see :func:`read_pairs` for the notes and the errors."""
    found: list[str] = []
    if not _is_structured(path):
        texts = {str(number): line for number, line in enumerate(_read_lines(path), start=1)}
    elif path.suffix.lower() == ".jsonl":
        texts = _by_id(path, _json_rows(_read_lines(path), _KINDS[column]))
    else:
        table = read_raw(path)
        found += table.notes
        texts = _by_id(path, _table_rows(table, column))
    texts = comparable(texts, f"{path}, {column}", found)
    if notes is not None:
        notes += [note for note in found if note not in notes]
    return texts


def comparable(texts: Mapping[str, str], what: str, notes: list[str]) -> dict[str, str]:
    """Return texts as packing stores them, and say in ``notes`` how many of ``what`` changed.

    In NFC, since a letter that is composed in one file and not in the other matches nothing, and
    without characters that cannot be seen.
    """
    seen = {i: visible(text) for i, text in texts.items()}
    alike = {i: composed(text) for i, text in seen.items()}
    num_invisible = sum(seen[i] != text for i, text in texts.items())
    num_composed = sum(alike[i] != text for i, text in seen.items())
    if num_invisible:
        notes.append(f"{what}: invisible characters were removed from {num_invisible} texts")
    if num_composed:
        notes.append(
            f"{what}: {num_composed} texts are not in Unicode's form NFC and are compared in it"
        )
    return alike


def _by_id(path: Path, rows: Iterable[tuple[int, _Row | str]]) -> dict[str, str]:
    """Return the texts by id; raise UserError with what is wrong with any row."""
    texts: dict[str, str] = {}
    lines_of: dict[str, int] = {}
    errors = []
    for number, row in rows:
        if isinstance(row, str):
            errors.append(f"line {number}: {row}")
        elif row.id in lines_of:
            errors.append(f"line {number}: the id {row.id!r} is already on line {lines_of[row.id]}")
        else:
            texts[row.id], lines_of[row.id] = row.text, number
    more = len(errors) - _SHOWN_ERRORS
    shown = errors[:_SHOWN_ERRORS] + ([f"and {more} more"] if more > 0 else [])
    raise_together(shown, f"{path}: cannot be scored")
    return texts


def write_hypotheses(
    path: Path, hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> None:
    """Write ``{"id", "hypothesis", "reference"}`` lines, sorted by id, whole or not at all.

    The bytes depend on the content alone. Raises :class:`UserError` when the ids differ.
    """
    apart = sorted(set(hypotheses) ^ set(references))
    if apart:
        raise UserError(f"{len(apart)} ids lack a hypothesis or a reference: {apart[:10]}")
    rows = [
        {"id": i, "hypothesis": hypotheses[i], "reference": references[i]}
        for i in sorted(hypotheses)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, text.encode("utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a float32 array per name, readable by ``numpy.load``; same arrays, same bytes.

    Not ``numpy.savez``: there an id named ``file`` is lost and the bytes hold the time of day.
    """
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = BytesIO()
            npy_format.write_array(member, np.asarray(arrays[name], np.float32), version=(1, 0))
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    write_bytes(path, buffer.getvalue())


def read_array(archive: zipfile.ZipFile, name: str, ndim: int) -> NDArray[np.float32]:
    """Return one array of ``ndim`` dimensions from an open file of :func:`write_arrays`.

    The member is looked up by its exact name, so ids with ``/`` or ``.npy`` in them are safe; its
    size is checked before memory is taken. Raises KeyError when the name is not there and
    :class:`UserError` when the member is not such an array.
    """
    with archive.open(f"{name}.npy") as member:
        try:
            if npy_format.read_magic(member) != (1, 0):
                raise ValueError("an unknown version of the format")
            shape, fortran, dtype = npy_format.read_array_header_1_0(member)
            if len(shape) != ndim or fortran or dtype != np.float32:
                raise ValueError(f"shape {shape} of {dtype}, not {ndim} dimensions of float32")
            size = 4 * math.prod(shape)
            data = member.read(size + 1)
            if len(data) != size:
                raise ValueError("its data is torn")
        except (ValueError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(f"the array of {name!r} cannot be read: {e}") from e
    return np.frombuffer(data, np.float32).reshape(shape)


def _read_lines(path: Path) -> list[str]:
    kind = special_kind(path)
    if kind:
        raise UserError(f"{path}: is {kind} and no file; it is not opened")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise unreadable(e, path) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    # Not splitlines: a sentence may hold other separators, such as U+2028.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _json_rows(lines: list[str], kind: type[_Row]) -> Iterator[tuple[int, _Row | str]]:
    """Yield the line number and the row, or what is wrong with the line."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            yield number, f"not JSON ({e})"
        else:
            yield number, _read_row(kind, record)


def _table_rows(table: RawTable, column: Column) -> Iterator[tuple[int, _Row | str]]:
    """Yield the line number and the row, or what is wrong with the line."""
    kind = _KINDS[column]
    if not any(table.header):
        raise UserError(f"{table.path}: empty; the first line must name the columns")
    errors: list[str] = []
    build(kind, dict.fromkeys(table.header, ""), errors, lambda place: f"column {dotted(place)}")
    raise_together(errors, f"{table.path}: its first line names the columns {list(table.header)}")
    for number, fields in table.fields(_COLUMNS[column]):
        yield number, fields if isinstance(fields, str) else _read_row(kind, fields)


def _read_row(kind: type[_Row], record: object) -> _Row | str:
    errors: list[str] = []
    return build(kind, record, errors) or "; ".join(errors)


@dataclass(frozen=True)
class Sample:
    """One translation; ``rank`` 1 is the best of the split, ``chrf`` in 0..100."""

    rank: int
    id: str
    hypothesis: str
    reference: str
    chrf: float


def rank_samples(hypotheses: Mapping[str, str], references: Mapping[str, str]) -> list[Sample]:
    """Return every sample from best to worst; equal scores in the order of their ids.

    The order is by sentence-level chrF, which is defined for sentences, unlike BLEU.
    """
    scored = sorted((-sentence_chrf(hypotheses[i], references[i]), i) for i in references)
    return [
        Sample(rank, i, hypotheses[i], references[i], -negative)
        for rank, (negative, i) in enumerate(scored, start=1)
    ]


def spread_samples(samples: list[Sample], count: int) -> list[Sample]:
    """Return ``count`` samples, or all, evenly spaced, with the best and the worst among them.

    Evenly, because the best alone flatter and the worst alone mislead.
    """
    if count >= len(samples):
        return samples
    if count < 2:
        return samples[:count]
    last = len(samples) - 1
    return [samples[round(i * last / (count - 1))] for i in range(count)]
