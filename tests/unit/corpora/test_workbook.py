"""Workbooks: cells as text, what a spreadsheet made of them named, and hostile archives refused."""

from __future__ import annotations

import datetime
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from signfuse_dist.corpora import CorpusError, read_corpus, read_table
from signfuse_dist.corpora.workbook import read_sheet

HEADER = ("id", "video", "text")


def workbook(path: Path, *sheets: Sequence[Sequence[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets or [[]]):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def repacked(path: Path, change: dict[str, bytes]) -> Path:
    """Replace members of an archive, or add them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | change).items():
            archive.writestr(name, content)
    return path


def member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


SHEET = "xl/worksheets/sheet1.xml"


def test_a_workbook_is_read_as_the_table_it_shows(tmp_path):
    rows = [
        (*HEADER, "split", "start", "end", "filmed"),
        ("a", "a.mp4", 'He said "hello"', "train", 0.5, 2, datetime.date(2026, 1, 2)),
        (7, " b.mp4", "two\nlines ", "train ", None, None, None),
        (None, None, None, None, None, None, None),
        ("c", "c.mp4", "other", "dev", None, 1.25, None),
        ("d", "d.mp4", None, "train", None, None, None),
    ]
    corpus = read_table(workbook(tmp_path / "t.XLSX", rows), "train")
    assert [(r.row, r.id, r.source, r.text, r.start, r.end) for r in corpus.rows] == [
        (2, "a", "a.mp4", 'He said "hello"', 0.5, 2.0),
        (3, "7", "b.mp4", "two lines", None, None),
    ]
    assert [(r.row, r.reason) for r in corpus.rejected] == [(6, "empty text")]
    assert corpus.notes[-1] == "1 rows belong to other splits: dev (1)"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (datetime.datetime(2026, 2, 1), "column id is a date or time, 2026-02-01"),
        (datetime.time(0, 5), "column id is a date or time, 00:05:00"),
        ("#N/A", "column id holds the error #N/A"),
        ("=A1", "column id is a formula without a result"),
    ],
)
def test_what_a_spreadsheet_made_of_a_cell_is_a_named_row(tmp_path, value, words):
    rows = [HEADER, (value, "a.mp4", "x"), ("b", "b.mp4", "y")]
    corpus = read_table(workbook(tmp_path / "t.xlsx", rows), "train")
    assert [row.id for row in corpus.rows] == ["b"]
    (rejected,) = corpus.rejected
    assert rejected.reason.startswith(f"malformed row: line 2, {words}")


def test_the_stored_result_of_a_formula_is_read(tmp_path):
    path = workbook(tmp_path / "t.xlsx", [HEADER, ("a", "a.mp4", "=LOWER(A1)")])
    sheet = member(path, SHEET).replace(b'<c r="C2">', b'<c r="C2" t="str">')
    sheet = re.sub(b"<v></v>|<v ?/>", b"<v>id</v>", sheet)
    repacked(path, {SHEET: sheet})
    (row,) = read_table(path, "train").rows
    assert row.text == "id"


def test_a_sheet_that_is_wrong_about_its_size_is_read_whole(tmp_path):
    rows = [HEADER, *((f"id{i}", "a.mp4", "x") for i in range(9))]
    path = workbook(tmp_path / "t.xlsx", rows)
    sheet = member(path, SHEET)
    assert b'ref="A1:C10"' in sheet
    repacked(path, {SHEET: sheet.replace(b'ref="A1:C10"', b'ref="A1:B3"')})
    assert len(read_table(path, "train").rows) == 9


def test_the_only_sheet_with_anything_in_it_is_the_table(tmp_path):
    rows = [HEADER, ("a", "a.mp4", "x")]
    assert len(read_table(workbook(tmp_path / "t.xlsx", [], rows, []), "train").rows) == 1
    with pytest.raises(CorpusError, match=r"2 sheets hold something: 'sheet 0', 'sheet 1'"):
        read_table(workbook(tmp_path / "t.xlsx", rows, [("notes",)]), "train")
    with pytest.raises(CorpusError, match="no sheet holds anything"):
        read_table(workbook(tmp_path / "t.xlsx"), "train")


def test_a_row_with_more_cells_than_the_header_is_named(tmp_path):
    rows = [HEADER, ("a", "a.mp4", "x", "more"), ("b", "b.mp4", "y")]
    corpus = read_table(workbook(tmp_path / "t.xlsx", rows), "train")
    assert [r.reason for r in corpus.rejected] == [
        "malformed row: line 2, 4 columns where the header has 3"
    ]


def test_a_cell_longer_than_a_spreadsheet_holds_is_named(tmp_path):
    path = workbook(tmp_path / "t.xlsx", [HEADER, ("a", "a.mp4", "MARK"), ("b", "b.mp4", "y")])
    with zipfile.ZipFile(path) as archive:  # versions of openpyxl put texts in different members
        texts = {n: archive.read(n) for n in archive.namelist() if b"MARK" in archive.read(n)}
    repacked(path, {n: content.replace(b"MARK", b"x" * 40_000) for n, content in texts.items()})
    corpus = read_table(path, "train")
    assert [r.row for r in corpus.rows] == [3]
    assert "column text holds more than 32767 characters" in corpus.rejected[0].reason


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_anything_is_parsed(tmp_path, encoding):
    path = workbook(tmp_path / "t.xlsx", [HEADER, ("a", "a.mp4", "x")])
    content = (BOMB + member(path, SHEET)).decode("utf-8").encode(encoding)
    with pytest.raises(CorpusError, match="declares entities, as no workbook does"):
        read_sheet(repacked(path, {SHEET: content}))


def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_its_sizes(tmp_path):
    path = workbook(tmp_path / "t.xlsx", [HEADER])
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("xl/media/big", "w", force_zip64=True) as file,
    ):
        for _ in range(1025):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**24
    with pytest.raises(CorpusError, match="unpacks to more than 1073741824 bytes"):
        read_sheet(path)


@pytest.mark.parametrize(
    "place", ['<row r="99999999999"><c r="A99999999999"/></row>', '<c r="ZZZ1">']
)
def test_a_sheet_that_claims_rows_or_columns_without_end_is_refused(tmp_path, place):
    path = workbook(tmp_path / "t.xlsx", [HEADER])
    row = place if place.startswith("<row") else f'<row r="1">{place}<v>1</v></c></row>'
    head = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    sheet = f"{head}<sheetData>{row}</sheetData></worksheet>"
    with pytest.raises(CorpusError, match="has more than 1048576 rows"):
        read_sheet(repacked(path, {SHEET: sheet.encode()}))


@pytest.mark.parametrize("content", [b"", b"id,video,text\n", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_workbook_is_refused_by_name(tmp_path, content):
    (tmp_path / "t.xlsx").write_bytes(content)
    with pytest.raises(CorpusError, match=r"t\.xlsx: cannot be read"):
        read_corpus("table", tmp_path / "t.xlsx", "train")


@pytest.mark.parametrize("name", [SHEET, "xl/workbook.xml", "[Content_Types].xml", "xl/styles.xml"])
def test_a_damaged_workbook_is_refused_by_name(tmp_path, name):
    path = workbook(tmp_path / "t.xlsx", [HEADER, ("a", "a.mp4", "x")])
    content = member(path, name)
    repacked(path, {name: content[: len(content) // 2]})
    with pytest.raises(CorpusError, match=r"t\.xlsx: cannot be read"):
        read_corpus("table", path, "train")


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    path = workbook(tmp_path / "t.xlsx", [HEADER, ("a", "a.mp4", "x")])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(CorpusError, match=r"pip install 'signfuse_dist\[excel\]'.*\.csv"):
        read_corpus("table", path, "train")
