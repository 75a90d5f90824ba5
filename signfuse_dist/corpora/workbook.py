"""A table in a workbook (``.xlsx``), read by openpyxl, which is the extra ``excel``.

A workbook is an archive of XML from anybody: what it unpacks to is bounded, entities are refused,
and nothing in it is computed.
"""

from __future__ import annotations

import datetime
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from signfuse_dist.corpora.characters import BLANKS
from signfuse_dist.corpora.rows import CorpusError
from signfuse_dist.files import special_kind
from signfuse_dist.system_errors import machine_error, machine_fault

# A sheet of the largest size with a sentence in each row has some 300 MB.
_MAX_BYTES = 2**30
_MAX_ROWS, _MAX_COLUMNS, _MAX_CELLS, _MAX_CHARACTERS = 2**20, 1000, 20_000_000, 32_767
_TYPE_DECLARATIONS = [
    word.encode(code)
    for word in ("<!DOCTYPE", "<!ENTITY")
    for code in ("utf-8", "utf-16-le", "utf-16-be")
]

Header = tuple[str, ...]
Rows = tuple[tuple[int, Sequence[str] | str], ...]
BadCells = dict[tuple[int, int], str]


def read_sheet(path: Path) -> tuple[Header, Rows, BadCells]:
    """Return the header, the rows by their number in the sheet, and by row and column bad cells.

    The first row that is not empty is the header, the only sheet with anything in it the table.
    Empty rows are left out. Raises :class:`CorpusError` when openpyxl is missing, and for a file
    that is no workbook, has several such sheets or none, or goes beyond the bounds.
    """
    _check_archive(path)
    sheet = _filled_sheet(path)
    header: Header = ()
    rows: list[tuple[int, Sequence[str] | str]] = []
    bad_cells: BadCells = {}
    for number, cells in sheet:
        texts = []
        for column, cell in enumerate(cells):
            text, fault = _text(*cell)
            texts.append(text)
            if fault:
                bad_cells[number, column] = fault
        width = max((column + 1 for column, text in enumerate(texts) if text), default=0)
        if not width and not any((number, column) in bad_cells for column in range(len(texts))):
            continue
        if not header:
            header = tuple(texts[:width])
        elif width > len(header):
            rows.append((number, f"{width} columns where the header has {len(header)}"))
        else:
            rows.append((number, (texts + [""] * len(header))[: len(header)]))
    return header, tuple(rows), bad_cells


_Cell = tuple[Any, str]
"""A value, and openpyxl's type of it; ``f``: the formula is still to be looked up."""
_Rows = list[tuple[int, list[_Cell]]]


def _filled_sheet(path: Path) -> _Rows:
    """Return the numbered rows of the only sheet that holds anything."""
    sheets = _sheets(path, data_only=False)
    if len(sheets) > 1:
        raise CorpusError(
            f"table {path}: {len(sheets)} sheets hold something: "
            f"{', '.join(map(repr, sheets))}; keep the table's alone, or save that one as .csv"
        )
    if not sheets:
        raise CorpusError(f"table {path}: no sheet holds anything")
    ((name, rows),) = sheets.items()
    if not any(kind == "f" for _, cells in rows for _, kind in cells):
        return rows
    results = dict(_sheets(path, data_only=True).get(name, []))
    return [
        (n, [_result(cell, results.get(n, []), c) for c, cell in enumerate(cells)])
        for n, cells in rows
    ]


def _result(cell: _Cell, results: Sequence[_Cell], column: int) -> _Cell:
    if cell[1] != "f":
        return cell
    found = results[column] if column < len(results) else (None, "")
    return (None, "f") if found[0] is None else found


def _sheets(path: Path, data_only: bool) -> dict[str, _Rows]:
    """Return the numbered rows of each sheet that is not empty: its formulas or their results."""
    try:
        import openpyxl
    except ImportError as error:
        raise CorpusError(
            f"table {path}: a workbook needs openpyxl: pip install 'signfuse_dist[excel]', or save "
            "it as .csv"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=data_only, keep_links=False)
        try:
            read = {sheet.title: _rows(path, sheet) for sheet in book.worksheets}
        finally:
            book.close()
    except CorpusError:
        raise
    except (
        zipfile.BadZipFile,
        SyntaxError,  # what XML parsers raise
        OSError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        NotImplementedError,
        OverflowError,
        openpyxl.utils.exceptions.InvalidFileException,
    ) as error:
        if machine_fault(error):
            raise machine_error(error, f"table {path}") from error
        raise CorpusError(
            f"table {path}: cannot be read as a workbook ({type(error).__name__}); save it again "
            "as .xlsx, or as .csv"
        ) from error
    return {title: rows for title, rows in read.items() if rows}


def _rows(path: Path, sheet: Any) -> _Rows:
    sheet.reset_dimensions()  # what a sheet says of its size may be wrong, and rows be cut off
    rows: _Rows = []
    num_cells = 0
    for number, row in enumerate(sheet.iter_rows(), start=1):
        num_cells += len(row)
        if number > _MAX_ROWS or len(row) > _MAX_COLUMNS or num_cells > _MAX_CELLS:
            raise CorpusError(
                f"table {path}: sheet {sheet.title!r} has more than {_MAX_ROWS} rows, "
                f"{_MAX_COLUMNS} columns or {_MAX_CELLS} cells"
            )
        cells: list[_Cell] = [(cell.value, cell.data_type) for cell in row]
        while cells and cells[-1][0] in (None, ""):
            cells.pop()
        if cells:
            rows.append((number, cells))
    return rows


def _text(value: Any, kind: str) -> tuple[str, str]:
    """Return a cell as text, and what is wrong with it."""
    if value is None:
        missing = "is a formula without a result; open the workbook and save it again"
        return "", missing if kind == "f" else ""
    if kind == "e":
        return str(value), f"holds the error {value}"
    if isinstance(value, str):
        if len(value) > _MAX_CHARACTERS:
            return "", f"holds more than {_MAX_CHARACTERS} characters"
        return value.strip(BLANKS), ""
    if isinstance(value, bool):
        return str(value).upper(), ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value)), ""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value), ""
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return str(value), f"is a date or time, {value}, not text or a number; format it as text"
    return str(value), f"is a {type(value).__name__}, not text or a number"


def _check_archive(path: Path) -> None:
    kind = special_kind(path)
    if kind:
        raise CorpusError(f"table {path}: is {kind} and no file; it is not opened")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise CorpusError(f"table {path}: unpacks to more than {_MAX_BYTES} bytes")
            for member in archive.infolist():
                with archive.open(member) as file:
                    _refuse_entities(path, file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        if machine_fault(error):
            raise machine_error(error, f"table {path}") from error
        reason = getattr(error, "strerror", None) or "it is no .xlsx"
        raise CorpusError(f"table {path}: cannot be read ({reason})") from error


def _refuse_entities(path: Path, file: IO[bytes]) -> None:
    """Raise CorpusError where XML declares a type of its own: no workbook does, and bombs do."""
    before = b""
    while chunk := file.read(2**20):
        if any(word in before + chunk for word in _TYPE_DECLARATIONS):
            raise CorpusError(f"table {path}: declares entities, as no workbook does")
        before = chunk[-40:]
