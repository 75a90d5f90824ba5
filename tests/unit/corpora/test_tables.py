"""Tables in every form that users hand over: text with tabs, csv of spreadsheets, workbooks."""

from __future__ import annotations

import csv
import os
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfuse_dist.corpora import Corpus, CorpusError, read_corpus, read_table
from signfuse_dist.corpora.tables import CSV, RawTable, read_raw

HEADER = ("id", "video", "text")


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def outcome(corpus: Corpus) -> dict[int, str]:
    """The text or the reason by row number."""
    rows = {row.row: row.text for row in corpus.rows}
    return rows | {row.row: row.reason for row in corpus.rejected}


def saved(rows: list[tuple[str, ...]], **dialect: str) -> str:
    file = StringIO()
    csv.writer(file, **dialect).writerows([HEADER, *rows])
    return file.getvalue()


ROWS = [
    ("a", "a.mp4", "plain"),
    ("b", "b.mp4", 'I said, "no"; and\tleft'),
    ("c", "c.mp4", "two\nlines"),
    ("d", "d.mp4", "three\r\nlines, \n\nof them"),
    ("e", "e.mp4", "last"),
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["t.csv", "T.CSV"])
def test_a_csv_is_read_as_spreadsheets_save_it(tmp_path, separator, end, mark, name):
    content = mark + saved(ROWS, delimiter=separator, lineterminator=end)
    corpus = read_table(written(tmp_path / name, content), "train")
    assert [(row.id, row.source) for row in corpus.rows] == [row[:2] for row in ROWS]
    assert [row.text for row in corpus.rows] == [
        "plain",
        'I said, "no"; and left',
        "two lines",
        "three lines, of them",
        "last",
    ]
    assert [row.row for row in corpus.rows] == [2, 3, 4, 6, 10]
    assert corpus.rejected == ()
    assert corpus.notes == ("3 texts held line breaks or tabs, which became blanks",)


def test_a_quote_that_is_not_closed_in_a_csv_swallows_no_other_row(tmp_path):
    lines = ["id,video,text", 'a,a.mp4,"never closed', "b,b.mp4,fine", 'c,c.mp4,"quoted, too"']
    corpus = read_table(written(tmp_path / "t.csv", "\n".join(lines)), "train")
    assert [(row.row, row.text) for row in corpus.rows] == [(3, "fine"), (4, "quoted, too")]
    (rejected,) = corpus.rejected
    assert rejected.reason.startswith("malformed row: line 2, its quotes are broken")


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_the_end_of_a_broken_cell_is_no_row_of_its_own(tmp_path, name):
    """The text comes first, so the line that ends it has as many cells as a row."""
    lines = ["text\tid\tvideo", '"one', "nul\0", 'two"\ta\ta.mp4', "fine\tb\tb.mp4"]
    lines += ['a 5" disc\tc\tc.mp4']
    found = outcome(read_table(written(tmp_path / name, "\n".join(lines)), "train"))
    assert found.pop(2).startswith("malformed row: line 2, its quotes are broken")
    assert found == {
        3: "malformed row: line 3, it holds a NUL character",
        4: "malformed row: line 4, its quote may close one that a line above it opens",
        5: "fine",
        6: 'a 5" disc',
    }


def test_a_line_break_in_a_tsv_names_both_lines(tmp_path):
    content = saved([("a", "a.mp4", "two\nlines"), ("b", "b.mp4", "fine")], delimiter="\t")
    found = outcome(read_table(written(tmp_path / "t.tsv", content), "train"))
    assert found[4] == "fine"
    assert found[2].startswith("malformed row: line 2, its quotes are broken")
    assert found[3] == "malformed row: line 3, 1 columns where the header has 3"


def test_empty_rows_of_a_spreadsheet_are_left_out(tmp_path):
    corpus = read_table(
        written(tmp_path / "t.csv", "id,video,text\na,a.mp4,x\n,,\n\n,,\n"), "train"
    )
    assert outcome(corpus) == {2: "x"}


def test_a_csv_with_an_unfinished_last_row_names_it(tmp_path):
    found = outcome(
        read_table(written(tmp_path / "t.csv", 'id,video,text\na,a.mp4,x\nb,b.mp4,"tor'), "train")
    )
    assert found[2] == "x"
    assert found[3].startswith("malformed row: line 3, its quotes are broken")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t.xls", r"'\.xls' is not read; save it as \.xlsx"),
        ("t.ods", "save it as"),
        ("t.parquet", "to_csv"),
        ("t.json", r"a table ends with \.tsv, \.txt, \.csv, \.xlsx"),
        ("table", "the ending '' is not read"),
    ],
)
def test_a_table_of_another_ending_is_refused_by_name(tmp_path, name, words):
    table = written(tmp_path / name, "id\tvideo\ttext\na\ta.mp4\tx\n")
    with pytest.raises(CorpusError, match=words):
        read_corpus("table", table, "train")


def test_a_text_file_is_a_table_with_tabs(tmp_path):
    table = written(tmp_path / "t.txt", "id\tvideo\ttext\na\ta.mp4\tx\n")
    assert outcome(read_table(table, "train")) == {2: "x"}


def test_a_folder_and_a_fifo_are_no_tables(tmp_path):
    with pytest.raises(CorpusError, match="is a folder; name the table itself"):
        read_corpus("table", tmp_path, "train")
    for name in ("t.tsv", "t.csv", "t.xlsx"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CorpusError, match="is a FIFO and no file; it is not opened"):
            read_corpus("table", tmp_path / name, "train")


def test_the_header_alone_decides_what_separates_cells(tmp_path):
    table = written(tmp_path / "t.csv", "id;video;text\na;a.mp4;one, two, three, four\n")
    assert outcome(read_table(table, "train")) == {2: "one, two, three, four"}
    with pytest.raises(CorpusError, match="separated by commas, semicolons or tabs"):
        read_table(written(tmp_path / "u.csv", "id|video|text\n"), "train")


def test_of_two_columns_of_one_name_the_first_counts_unless_it_is_needed(tmp_path):
    table = written(tmp_path / "t.tsv", "note\tid\tnote\tvideo\ttext\nx\ta\ty\ta.mp4\tz\n")
    ((_, fields),) = read_raw(table).fields(HEADER)
    assert fields == {"note": "x", "id": "a", "video": "a.mp4", "text": "z"}
    table = written(tmp_path / "u.tsv", "id\tvideo\ttext\tsplit\tsplit\n")
    with pytest.raises(CorpusError, match="column split appears more than once"):
        read_table(table, "train")


_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(_CELL, _CELL, _CELL), max_size=5), separator=st.sampled_from(",;\t"))
def test_what_csv_writes_is_read_back_or_named(tmp_path_factory, rows, separator):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    file = StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows([HEADER, *rows])
    table = read_raw(written(path, file.getvalue()), CSV)
    assert isinstance(table, RawTable)
    stripped = [[cell.strip(_BLANKS) for cell in row] for row in rows]
    read = [cells for _, cells in table.rows if not isinstance(cells, str)]
    for cells in read:
        assert list(cells) in stripped
    named = sum(isinstance(cells, str) for _, cells in table.rows)
    if not named:
        assert [list(cells) for cells in read] == [row for row in stripped if any(row)]


_BLANKS = " \t\n\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
