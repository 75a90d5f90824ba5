"""Translations as files: hypotheses and references of anybody, arrays by clip, and which are shown.

``hypotheses.jsonl`` has a line ``{"id", "hypothesis", "reference"}`` a clip, a JSON list
(``.json``) has such objects, a table (``.tsv``, ``.csv``, ``.xlsx``) such columns; plain text files
(``.txt``) are matched line by line. A reference may be a list of texts, and further files may hold
further ones. Texts are compared as packing stores them: in NFC, without invisible characters.
``gates.npz`` and ``attention.npz`` hold an array a name.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from pydantic import AfterValidator, AliasChoices, Field, PlainValidator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.corpora.characters import visible
from signfuse_dist.corpora.rows import composed
from signfuse_dist.corpora.tables import RawTable, read_raw
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.protocols import PRESETS, Reference, texts_of
from signfuse_dist.evaluation.sentences import SentenceStatistics
from signfuse_dist.files import parse_json, special_kind, write_bytes
from signfuse_dist.records import build, dotted
from signfuse_dist.system_errors import unreadable

Column = Literal["hypothesis", "reference"]
_TABLES = (".tsv", ".csv", ".xlsx")
_STRUCTURED = (".jsonl", ".json", *_TABLES)
_SHOWN_ERRORS = 20


def _check_text(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, which is no text")
    return text


def _check_reference(value: object) -> Reference:
    """Return a text, or the texts of a list; a list of one is that text."""
    if isinstance(value, str):
        return _check_text(value)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("is neither a text nor a list of texts")
    if not value or not all(text.strip() for text in value):
        raise ValueError("is a list without a text, or with an empty one")
    texts = tuple(map(_check_text, value))
    return texts if len(texts) > 1 else texts[0]


_Text = Annotated[str, AfterValidator(_check_text)]
_Texts = Annotated[Reference, PlainValidator(_check_reference)]


@pydantic_dataclass(frozen=True)
class _Hypothesis:
    """A row of which the hypothesis is read; other columns are ignored."""

    id: _Text = Field(validation_alias=AliasChoices("id", "name"))
    text: _Text = Field(validation_alias=AliasChoices("hypothesis"))


@pydantic_dataclass(frozen=True)
class _Reference:
    """A row of which the reference is read, such as one of a packing table."""

    id: _Text = Field(validation_alias=AliasChoices("id", "name"))
    text: _Texts = Field(validation_alias=AliasChoices("reference", "text", "references"))


_Row = _Hypothesis | _Reference
_KINDS: Mapping[Column, type[_Row]] = {"hypothesis": _Hypothesis, "reference": _Reference}


_COLUMNS: Mapping[Column, tuple[str, ...]] = {
    "hypothesis": ("id", "name", "hypothesis"),
    "reference": ("id", "name", "reference", "text"),
}


def read_pairs(
    hypotheses: Path, references: Path | None, notes: list[str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return hypotheses and their only references by id; see :func:`read_scored`.

    ``references`` None means that the hypotheses' file has both columns. Raises :class:`UserError`
    for several references of an id, which only scoring takes.
    """
    ours, theirs = read_scored(hypotheses, [references] if references else [], notes)
    several = [name for name, reference in theirs.items() if not isinstance(reference, str)]
    if several:
        raise UserError(
            f"{references or hypotheses}: {several[0]!r} has several references; here each has one"
        )
    return ours, {name: text for name, text in theirs.items() if isinstance(text, str)}


def read_scored(
    hypotheses: Path, references: Sequence[Path], notes: list[str] | None = None
) -> tuple[dict[str, str], dict[str, Reference]]:
    """Return hypotheses and references by id, each in the order of its file.

    Without ``references`` the hypotheses' file has both columns. Each further file adds a reference
    to ids of the first, where it has one. What was changed in reading is added to ``notes``. Raises
    :class:`UserError` for a file that cannot be read or whose ending is not known, a malformed
    line, a duplicate id, an id that only a further file has, or plain files with different numbers
    of lines.
    """
    sources = list(references) or [hypotheses]
    structured = _is_structured(hypotheses)
    if not references and not structured:
        raise UserError(
            f"{hypotheses}: a plain text file holds no references; name a second file with "
            f"--references, or give a file that has both: {', '.join(_STRUCTURED)}"
        )
    for source in sources:
        if _is_structured(source) != structured:
            raise UserError(
                f"{hypotheses} and {source}: one is plain text, whose ids are line numbers, and "
                "the other names its ids; give .txt files alone, or files of "
                f"{', '.join(_STRUCTURED)}"
            )
    notes = [] if notes is None else notes
    ours = read_hypotheses(hypotheses, notes)
    theirs: dict[str, Reference] = {}
    for number, source in enumerate(sources):
        read = read_references(source, notes)
        if not structured and len(ours) != len(read):
            raise UserError(
                f"{hypotheses} has {len(ours)} lines and {source} has {len(read)}: "
                "plain text files are matched line by line"
            )
        if number == 0:
            theirs = read
        else:
            _add_references(theirs, read, source, sources[0])
    return ours, theirs


def _add_references(
    theirs: dict[str, Reference], more: Mapping[str, Reference], source: Path, first: Path
) -> None:
    """Add further references by id; raise UserError for an id that the first file has not."""
    unknown = sorted(set(more) - set(theirs))
    if unknown:
        raise UserError(
            f"{source}: {len(unknown)} ids are not in {first}: {', '.join(map(repr, unknown[:10]))}"
        )
    for name, reference in more.items():
        texts = tuple(text for text in texts_of(reference) if text.strip())
        if texts:
            theirs[name] = (*texts_of(theirs[name]), *texts)


def _is_structured(path: Path) -> bool:
    """Say whether a file names its ids; raise UserError for an ending that is not known."""
    suffix = path.suffix.lower()
    if suffix not in (*_STRUCTURED, ".txt"):
        raise UserError(
            f"{path}: files of the ending {suffix!r} are not read; a table is .tsv, .csv or .xlsx, "
            "JSON lines are .jsonl, a JSON list is .json, and one sentence a line is .txt"
        )
    return suffix in _STRUCTURED


def read_hypotheses(path: Path, notes: list[str]) -> dict[str, str]:
    """Return the translations of a file by id; see :func:`read_scored` for notes and errors."""
    return comparable(_read_column(path, "hypothesis", notes), f"{path}, hypothesis", notes)


def read_references(path: Path, notes: list[str]) -> dict[str, Reference]:
    """Return the references of a file by id; see :func:`read_scored` for notes and errors."""
    return comparable_references(
        _read_column(path, "reference", notes), f"{path}, reference", notes
    )


def _read_column(path: Path, column: Column, notes: list[str]) -> dict[str, Any]:
    """Return one column of a file by id: texts, of references also several."""
    kind = _KINDS[column]
    if not _is_structured(path):
        return {str(number): line for number, line in enumerate(_read_lines(path), start=1)}
    if path.suffix.lower() == ".jsonl":
        return _by_id(path, _json_rows(_read_lines(path), kind))
    if path.suffix.lower() == ".json":
        return _by_id(path, _json_entries(path, kind))
    table = read_raw(path)
    notes += [note for note in table.notes if note not in notes]
    return _by_id(path, _table_rows(table, column))


def comparable(texts: Mapping[str, str], what: str, notes: list[str]) -> dict[str, str]:
    """Return texts as packing stores them, and say in ``notes`` how many of ``what`` changed.

    In NFC, since a letter that is composed in one file and not in the other matches nothing, and
    without characters that cannot be seen.
    """
    seen = [visible(text) for text in texts.values()]
    alike = [composed(text) for text in seen]
    num_invisible = sum(new != old for new, old in zip(seen, texts.values(), strict=True))
    num_composed = sum(new != old for new, old in zip(alike, seen, strict=True))
    if num_invisible:
        notes.append(f"{what}: invisible characters were removed from {num_invisible} texts")
    if num_composed:
        notes.append(
            f"{what}: {num_composed} texts are not in Unicode's form NFC and are compared in it"
        )
    return dict(zip(texts, alike, strict=True))


def comparable_references(
    references: Mapping[str, Reference], what: str, notes: list[str]
) -> dict[str, Reference]:
    """Return references as :func:`comparable` returns texts."""
    flat = {
        f"{number} {name}": text
        for name, reference in references.items()
        for number, text in enumerate(texts_of(reference))
    }
    texts = iter(comparable(flat, what, notes).values())
    return {
        name: next(texts) if isinstance(reference, str) else tuple(next(texts) for _ in reference)
        for name, reference in references.items()
    }


def _by_id(path: Path, rows: Iterable[tuple[str, _Row | str]]) -> dict[str, Any]:
    """Return the texts by id; raise UserError with what is wrong with any row."""
    texts: dict[str, Any] = {}
    places: dict[str, str] = {}
    errors = []
    for place, row in rows:
        if isinstance(row, str):
            errors.append(f"{place}: {row}")
        elif row.id in places:
            errors.append(f"{place}: the id {row.id!r} is already on {places[row.id]}")
        else:
            texts[row.id], places[row.id] = row.text, place
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
    # Not splitlines: a sentence may hold other separators, such as U+2028.
    lines = [line.removesuffix("\r") for line in _read_content(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _read_content(path: Path) -> str:
    kind = special_kind(path)
    if kind:
        raise UserError(f"{path}: is {kind} and no file; it is not opened")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise unreadable(e, path) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save it as UTF-8") from e


def _json_rows(lines: list[str], kind: type[_Row]) -> Iterator[tuple[str, _Row | str]]:
    """Yield the place and the row of each line, or what is wrong with it."""
    for number, line in enumerate(lines, start=1):
        place = f"line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            yield place, f"not JSON ({e})"
        else:
            yield place, _read_row(kind, record)


def _json_entries(path: Path, kind: type[_Row]) -> Iterator[tuple[str, _Row | str]]:
    """Yield the place and the row of each entry of a JSON list, or what is wrong with it."""
    entries = parse_json(_read_content(path), str(path))
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: holds no list of objects with id, hypothesis and reference; an object a line "
            "is .jsonl"
        )
    for number, entry in enumerate(entries, start=1):
        yield f"entry {number}", _read_row(kind, entry)


def _table_rows(table: RawTable, column: Column) -> Iterator[tuple[str, _Row | str]]:
    """Yield the place and the row of each line, or what is wrong with it."""
    kind = _KINDS[column]
    if not any(table.header):
        raise UserError(f"{table.path}: empty; the first line must name the columns")
    errors: list[str] = []
    build(kind, dict.fromkeys(table.header, ""), errors, lambda place: f"column {dotted(place)}")
    raise_together(errors, f"{table.path}: its first line names the columns {list(table.header)}")
    for number, fields in table.fields(_COLUMNS[column]):
        row = fields if isinstance(fields, str) else _read_row(kind, fields)
        yield f"line {number}", row


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


# By which translations are ordered: defined for sentences, unlike BLEU.
RANKED_BY = "chrF"


def rank_samples(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    statistics: SentenceStatistics | None = None,
) -> list[Sample]:
    """Return every sample from best to worst; equal scores in the order of their ids.

    The order is by sacrebleu's chrF2 of the sentence. ``statistics`` are at hand where the texts
    have been counted by a protocol that changes nothing of them.
    """
    if not references:
        return []
    if statistics is None:
        plain = PRESETS["sacrebleu"]
        statistics = SentenceStatistics(hypotheses, references, plain, (RANKED_BY,))
    values = statistics.of_sentences(RANKED_BY)
    scored = sorted((-values.get(i, 0.0), i) for i in references)
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
