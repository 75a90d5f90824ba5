"""Tables as people write them, for packing and for scoring: a bad row is that row's fault alone.

The ending says the form: ``.tsv`` and ``.txt`` have tabs between their cells, ``.csv`` commas,
semicolons or tabs, ``.xlsx`` is a workbook. Blanks at the ends of cells go. A cell in double quotes
is read without them, a doubled quote in it being one; a quote that is not closed is the fault of
its own row and swallows no other. In ``.csv`` a quoted cell may go on over several lines.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from signfuse_dist.corpora.characters import BLANKS
from signfuse_dist.corpora.rows import CorpusError, Fields
from signfuse_dist.files import special_kind
from signfuse_dist.system_errors import unreadable

SUFFIXES = (".tsv", ".txt", ".csv", ".xlsx")
"""Endings of the tables that are read."""

_SHOWN = 300  # characters of a header that is none: it may be a whole file
_MAX_LINES = 200  # of one quoted cell
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons"}
_OTHERS = {
    ".xls": "save it as .xlsx",
    ".xlsm": "save it as .xlsx",
    ".ods": "save it as .xlsx or .csv",
    ".parquet": "write it as .tsv, such as by pandas' to_csv(..., sep='\\t', index=False)",
}
_HINT = 'a cell that begins with a double quote must be quoted whole, as "so ""quoted"" text"'


@dataclass(frozen=True)
class Form:
    """How a text table is written."""

    separators: tuple[str, ...]
    """Which may stand between cells; the one that gives the header the most cells does."""
    quotes: bool = True
    """Whether a cell may stand in double quotes; else a quote is a quote."""
    breaks: bool = False
    """Whether a quoted cell may hold line breaks. Rows without any text are left out then."""


TABS = Form(("\t",))
CSV = Form((",", ";", "\t"), breaks=True)


@dataclass(frozen=True)
class RawTable:
    """A table as it is written: its header, and the cells of each row after it."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, Sequence[str] | str], ...]
    """Number of the row's first line (the header's is 1); its cells, or what is wrong with it."""
    separator: str = "\t"
    bad_cells: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """By row number and column, what is wrong with a cell of a workbook."""
    notes: tuple[str, ...] = ()

    def fields(self, wanted: Collection[str]) -> Iterator[tuple[int, Fields | str]]:
        """Yield each row by column, or what is wrong with it or with a cell of ``wanted``.

        Of two columns of one name the first counts.
        """
        # From the last to the first, where that matters.
        step = 1 if len(set(self.header)) == len(self.header) else -1
        names = self.header[::step]
        for number, cells in self.rows:
            if isinstance(cells, str):
                yield number, cells
            elif len(cells) != len(names):
                yield number, f"{len(cells)} columns where the header has {len(names)}"
            else:
                fault = self.bad_cells and self._bad_cell(number, wanted)
                yield number, fault or dict(zip(names, cells[::step], strict=True))

    def _bad_cell(self, number: int, wanted: Collection[str]) -> str:
        for place, name in enumerate(self.header):
            if name in wanted and (number, place) in self.bad_cells:
                return f"column {name} {self.bad_cells[number, place]}"
        return ""


@dataclass(frozen=True)
class Lines:
    """A table by its columns: each row after the header with its number, the header being 1."""

    path: Path
    columns: tuple[str, ...]
    lines: tuple[tuple[int, Fields | str], ...]
    """Fields by column, or what is wrong with the row. Empty lines are left out."""
    notes: tuple[str, ...] = ()
    """What a user must know of how the table was read."""

    @cached_property
    def fields(self) -> list[tuple[int, Fields]]:
        """The rows that are whole."""
        return [(number, fields) for number, fields in self.lines if not isinstance(fields, str)]


def read_lines(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), form: Form | None = None
) -> Lines:
    """Read a table by its columns; ``form`` None goes by its ending, as :func:`read_raw` does.

    Raises :class:`CorpusError` as that does, and when a column of ``required`` is missing or one
    of ``required`` or ``optional`` is there twice.
    """
    raw = read_raw(path, form)
    missing = [name for name in required if name not in raw.header]
    if missing:
        hint = ""
        if len(raw.header) == 1 and path.suffix.lower() != ".xlsx":
            hint = f"; it must be separated by {_named((form or _form_of(path)).separators)}"
        raise CorpusError(
            f"table {path}: no column {', '.join(missing)} in its header "
            f"{repr(list(raw.header))[:_SHOWN]}{hint}"
        )
    known = (*required, *optional)
    twice = [name for name in known if raw.header.count(name) > 1]
    if twice:
        raise CorpusError(f"table {path}: column {', '.join(twice)} appears more than once")
    return Lines(path, raw.header, tuple(raw.fields(known)), raw.notes)


def read_raw(path: Path, form: Form | None = None) -> RawTable:
    """Read the cells of a table: UTF-8, with or without a byte order mark and Windows' line ends.

    ``form`` None goes by the ending. Raises :class:`CorpusError` when the table cannot be read:
    another ending, no file, a header that is broken.
    """
    if path.is_dir():
        raise CorpusError(f"table {path}: is a folder; name the table itself")
    if form is None:
        form = _form_of(path)
        if path.suffix.lower() == ".xlsx":
            return _read_workbook(path)
    lines = _read_text(path)
    header_line = lines[0]
    if header_line is None:
        raise CorpusError(f"table {path}: the header is not UTF-8; save it as UTF-8")
    separator = max(form.separators, key=lambda s: _num_cells(header_line, s, form.quotes))
    try:
        header, _ = _cut(header_line, separator, form.quotes)
    except CorpusError as error:
        raise CorpusError(f"table {path}: the header cannot be read, {error}") from error
    rows, num_unquoted = _rows(lines, separator, form, len(header))
    notes = []
    if num_unquoted and form == TABS:
        notes.append(
            f"{num_unquoted} cells of {path.name} stand in double quotes, as csv writes them; they "
            "are read without"
        )
    return RawTable(path, tuple(header), tuple(rows), separator, {}, tuple(notes))


def _form_of(path: Path) -> Form:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        what = _OTHERS.get(suffix, f"a table ends with {', '.join(SUFFIXES)}")
        raise CorpusError(f"table {path}: a table of the ending {suffix!r} is not read; {what}")
    return CSV if suffix == ".csv" else TABS


def _read_workbook(path: Path) -> RawTable:
    from signfuse_dist.corpora.workbook import read_sheet

    header, rows, bad_cells = read_sheet(path)
    return RawTable(path, header, rows, bad_cells=bad_cells)


def _named(separators: Sequence[str]) -> str:
    *others, last = (_NAMES.get(separator, separator) for separator in separators)
    return f"{', '.join(others)} or {last}" if others else last


def _read_text(path: Path) -> list[str | None]:
    """Return the lines of a file, None for one that is not UTF-8."""
    kind = special_kind(path)
    if kind:
        raise CorpusError(f"table {path}: is {kind} and no file; it is not opened")
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise unreadable(error, f"table {path}", CorpusError) from error
    try:
        return [line.removesuffix("\r") for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        return [_decoded(line) for line in content.split(b"\n")]


def _decoded(line: bytes) -> str | None:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        return None


def _rows(
    lines: Sequence[str | None], separator: str, form: Form, num_columns: int
) -> tuple[list[tuple[int, Sequence[str] | str]], int]:
    """Cut the lines after the header into rows; return them, and how many cells were unquoted."""
    rows: list[tuple[int, Sequence[str] | str]] = []
    num_unquoted = 0
    torn = False  # a quote is open that the lines after it did not close
    place = 0
    while (place := place + 1) < len(lines):
        line, number = lines[place], place + 1
        if line == "":
            continue
        if line is None:
            rows.append((number, "not UTF-8"))
            continue
        if "\0" in line:
            rows.append((number, "it holds a NUL character"))
            continue
        try:
            cells, unquoted = _cut(line, separator, form.quotes)
        except _OpenQuote as error:
            end = _closing(lines, place, separator, num_columns) if form.breaks else None
            if end is None:
                rows.append((number, str(error)))
                torn = True
                continue
            joined = "\n".join(line or "" for line in lines[place : end + 1])
            cells, unquoted = _cut(joined, separator, form.quotes)
            place = end
        except CorpusError as error:
            rows.append((number, str(error)))
            continue
        if torn:
            closes = line.count('"') % 2 == 1
            torn = not (closes or len(cells) == num_columns)
            if closes and len(cells) == num_columns:
                rows.append((number, "its quote may close one that a line above it opens"))
                continue
        if form.breaks and not any(cells):
            continue
        num_unquoted += unquoted
        rows.append((number, cells))
    return rows, num_unquoted


def _closing(
    lines: Sequence[str | None], start: int, separator: str, num_columns: int
) -> int | None:
    """Return the place of the line that closes the quote which is open at the end of ``start``.

    None when there is none, or when a line before it is a row by itself: then the quote was
    forgotten, and what follows is no part of it.
    """
    for place in range(start + 1, min(start + _MAX_LINES, len(lines))):
        line = lines[place]
        if line is None or "\0" in line:
            return None
        if line.count('"') % 2:  # inside a cell quotes come in pairs
            joined = "\n".join(str(line) for line in lines[start : place + 1])
            try:
                cells, _ = _cut(joined, separator, quotes=True)
            except CorpusError:
                return None
            return place if len(cells) == num_columns else None
        if _num_cells(line, separator, quotes=True) == num_columns:
            return None
    return None


class _OpenQuote(CorpusError):
    """A quote is open at the end of what is cut."""


def _cut(line: str, separator: str, quotes: bool) -> tuple[list[str], int]:
    """Return the cells of a row and how many stood in quotes; raise CorpusError for broken ones."""
    if not quotes or '"' not in line:
        return [cell.strip(BLANKS) for cell in line.split(separator)], 0
    cells, unquoted, place = [], 0, 0
    cell, unclosed = _patterns(separator)
    while True:
        found = cell.match(line, place)
        if found is None and unclosed.match(line, place):
            raise _OpenQuote(f"its quotes are broken (a quote is not closed); {_HINT}")
        if found is None:
            raise CorpusError(
                f"its quotes are broken (a quote closes before its cell ends); {_HINT}"
            )
        quoted, plain, end = found.groups()
        unquoted += quoted is not None
        cells.append((plain if quoted is None else quoted.replace('""', '"')).strip(BLANKS))
        if not end:
            return cells, unquoted
        place = found.end()


@cache
def _patterns(separator: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what a cell is with what ends it, and what a cell is whose quote is not closed."""
    blank = r"[^\S\t\r\n]*" if separator == "\t" else r"[^\S\r\n]*"
    content = r'"([^"]*(?:""[^"]*)*)'
    mark = re.escape(separator)
    cell = rf'(?:{blank}{content}"{blank}|(?!{blank}")([^{mark}]*))({mark}|\Z)'
    return re.compile(cell), re.compile(rf"{blank}{content}\Z")


def _num_cells(line: str, separator: str, quotes: bool) -> int:
    try:
        return len(_cut(line, separator, quotes)[0])
    except CorpusError:
        return 0
