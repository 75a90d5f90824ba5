"""Text tables (TSV, CSV) line by line: a line is a row; a bad line is that row's fault alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.corpora.rows import CorpusError, Fields

_SHOWN = 300  # characters of a header that is none: it may be a whole file

Cut = Callable[[str], list[str]]
"""Cuts a line into its fields; raises :class:`CorpusError` with what is wrong with the line."""


@dataclass(frozen=True)
class Lines:
    """A table: its columns, and each line after the header with its number, the header being 1."""

    path: Path
    columns: tuple[str, ...]
    lines: tuple[tuple[int, Fields | str], ...]
    """Fields by column, or what is wrong with the line. Empty lines are left out."""

    @property
    def fields(self) -> list[tuple[int, Fields]]:
        """The lines that are whole."""
        return [(number, fields) for number, fields in self.lines if not isinstance(fields, str)]


def read_header(path: Path) -> str:
    """Return the first line of a table. Raises :class:`CorpusError` when it cannot be read."""
    return _header(path, _content(path)[0])


def read_lines(path: Path, cut: Cut, required: Sequence[str], separator: str) -> Lines:
    """Read a UTF-8 table, with or without a byte order mark and Windows' line ends.

    Lines are cut apart first, so that a quote which is not closed cannot swallow the next line.
    Raises :class:`CorpusError` when the table cannot be read, or when a column of ``required`` is
    missing or there twice; ``separator`` is its name in that message.
    """
    first, *rest = _content(path)
    columns = _columns(path, _header(path, first), cut)
    missing = [name for name in required if name not in columns]
    if missing:
        hint = f"; it must be separated by {separator}" if len(columns) == 1 else ""
        raise CorpusError(
            f"table {path}: no column {', '.join(missing)} in its header "
            f"{repr(list(columns))[:_SHOWN]}{hint}"
        )
    refuse_twice(path, columns, required)
    numbered = [(number, line) for number, line in enumerate(rest, start=2) if line]
    return Lines(path, columns, tuple((n, _fields(line, columns, cut)) for n, line in numbered))


def refuse_twice(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    """Raise :class:`CorpusError` when one of ``names`` heads two columns."""
    twice = [name for name in names if columns.count(name) > 1]
    if twice:
        raise CorpusError(f"table {path}: column {', '.join(twice)} appears more than once")


def cut_at(separator: str) -> Cut:
    """Cut at a separator that cannot be escaped: fields are as they stand, a quote is a quote."""
    return lambda line: line.split(separator)


def cut_quoted(separator: str) -> Cut:
    """Cut a line in which fields may stand in double quotes, a doubled quote being one.

    A quote that is not closed, or that closes before the end of its field, is refused: what the
    text was cannot be known.
    """

    def cut(line: str) -> list[str]:
        if "\0" in line:  # which csv refuses in some versions of Python and takes in others
            raise CorpusError("it holds a NUL character")
        try:
            return next(csv.reader([line], delimiter=separator, strict=True), [])
        except csv.Error as error:
            raise CorpusError(f"its quotes are broken ({error})") from error

    return cut


def _content(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"table {path}: cannot be read ({error.strerror})") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    return [line.removesuffix(b"\r") for line in content.split(b"\n")]


def _header(path: Path, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"table {path}: the header is not UTF-8; save it as UTF-8") from error


def _columns(path: Path, header: str, cut: Cut) -> tuple[str, ...]:
    try:
        return tuple(name.strip() for name in cut(header))
    except CorpusError as error:
        raise CorpusError(f"table {path}: the header cannot be read, {error}") from error


def _fields(line: bytes, columns: Sequence[str], cut: Cut) -> Fields | str:
    """Return the fields by column, or what is wrong with the line."""
    try:
        values = cut(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except CorpusError as error:
        return str(error)
    if len(values) != len(columns):
        return f"{len(values)} columns where the header has {len(columns)}"
    return dict(zip(columns, values, strict=True))
