from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.little_clips import write_table
from signfuse_dist.corpora import (
    VIDEO_SUFFIXES,
    Box,
    CorpusError,
    key_of,
    read_corpus,
    read_table,
    script_of,
)
from signfuse_dist.evaluation.new_clips import find_videos

COLUMNS = ("id", "video", "text", "start", "end")


def rejected_reason(folder: Path, *row: object) -> str:
    good = ("good", "good.mp4", "a sentence", "", "")
    table = write_table(folder / "t.tsv", [good, row], COLUMNS)
    corpus = read_table(table, "train")
    assert [r.id for r in corpus.rows] == ["good"], "a bad row takes no other with it"
    (rejected,) = corpus.rejected
    assert rejected.row == 3
    return rejected.reason


def test_a_time_that_pandas_left_empty_is_no_time(tmp_path):
    rows = [("a", "a.mp4", "text", "nan", "1.5"), ("b", "b.mp4", "text", "0.5", "NaN")]
    corpus = read_table(write_table(tmp_path / "t.tsv", rows, COLUMNS), "train")
    assert [(row.start, row.end) for row in corpus.rows] == [(None, 1.5), (0.5, None)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("a", "a.mp4", "text", ""), "malformed row: line 3, 4 columns where the header has 5"),
        (("", "a.mp4", "text", "", ""), "empty id"),
        (("good", "a.mp4", "text", "", ""), "duplicate id"),
        (("a/b", "a.mp4", "text", "", ""), "bad id"),
        (("a\\b", "a.mp4", "text", "", ""), "bad id"),
        (("../a", "a.mp4", "text", "", ""), "bad id"),
        (("a\x1b[2J", "a.mp4", "text", "", ""), "bad id"),
        (("語" * 40, "a.mp4", "text", "", ""), "bad id"),
        (("a", "a.mp4", "", "", ""), "empty text"),
        (("a", "a.mp4", "  ", "", ""), "empty text"),
        (("a", "", "text", "", ""), "bad path"),
        (("a", "/etc/passwd", "text", "", ""), "bad path"),
        (("a", "b/../../c.mp4", "text", "", ""), "bad path"),
        (("a", "a.mp4", "text", "soon", ""), "bad time: start 'soon'"),
        (("a", "a.mp4", "text", "-1", ""), "bad time"),
        (("a", "a.mp4", "text", "inf", ""), "bad time"),
        (
            ("a", "a.mp4", "text", "0,5", ""),
            "bad time: start '0,5' is not a time in seconds; write",
        ),
        (("a", "a.mp4", "text", "2", "2"), "bad time: end 2 s is not after"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(tmp_path, row, reason):
    assert rejected_reason(tmp_path, *row).startswith(reason)


@pytest.mark.parametrize(
    "written",
    [
        "0 0 1",
        "0 0 1 1 1",
        "left top right bottom",
        "0 0 nan 1",
        "0 0 inf 1",
        "-0.1 0 1 1",
        "0 0 1.01 1",
        "0 0 640 480",
        "0.5 0 0.5 1",
        "0 0.9 1 0.1",
    ],
)
def test_a_box_that_is_no_part_of_a_picture_is_rejected(tmp_path, written):
    rows = [("good", "g.mp4", "a sentence", "0 0 1 1"), ("a", "a.mp4", "text", written)]
    table = write_table(tmp_path / "t.tsv", rows, ("id", "video", "text", "box"))
    corpus = read_table(table, "train")
    assert [row.id for row in corpus.rows] == ["good"]
    assert [(r.id, r.row) for r in corpus.rejected] == [("a", 3)]
    assert corpus.rejected[0].reason.startswith(f"bad box: {written!r} is not x0 y0 x1 y1")


@pytest.mark.parametrize("written", ["0.1 0.2 0.6 1", "0.1,0.2,0.6,1.0", " 0.1, 0.2, 0.6, 1 "])
def test_a_box_is_read_with_blanks_or_commas_between(tmp_path, written):
    rows = [("a", "a.mp4", "text", written), ("b", "b.mp4", "text", " ")]
    table = write_table(tmp_path / "t.tsv", rows, ("id", "video", "text", "box"))
    assert [row.box for row in read_table(table, "train").rows] == [Box(0.1, 0.2, 0.6, 1.0), None]


def test_a_table_has_one_column_of_boxes(tmp_path):
    table = write_table(tmp_path / "t.tsv", [], ("id", "video", "text", "box", "box"))
    with pytest.raises(CorpusError, match="column box appears more than once"):
        read_table(table, "train")


def test_a_folder_of_videos_that_is_a_link_is_followed_and_its_strays_are_listed(tmp_path):
    scratch, folder = tmp_path / "scratch", tmp_path / "corpus"
    for name in ("a.mp4", "stray.mp4"):
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_bytes(b"")
    folder.mkdir()
    (folder / "videos").symlink_to(scratch)
    (folder / "b.mp4").symlink_to(scratch / "a.mp4")
    rows = [("a", "videos/a.mp4", "x"), ("b", "b.mp4", "x"), ("c", "../scratch/a.mp4", "x")]
    corpus = read_table(write_table(folder / "t.tsv", rows, COLUMNS[:3]), "train")
    assert [row.id for row in corpus.rows if row.video.is_file()] == ["a", "b"]
    assert [(r.id, r.reason.partition(":")[0]) for r in corpus.rejected] == [("c", "bad path")]
    assert [orphan.id for orphan in corpus.orphans] == ["stray.mp4"]


def test_files_with_a_leading_dot_are_no_videos(tmp_path):
    for name in ("v/a.mp4", "v/._a.mp4", "v/.trash/b.mp4", "f/d/0.png", "f/.cache/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rows = [("a", "v/a.mp4", "x"), ("d", "f/d", "x"), ("dot", "v/._a.mp4", "x")]
    corpus = read_table(write_table(tmp_path / "t.tsv", rows, COLUMNS[:3]), "train")
    assert corpus.orphans == ()
    (rejected,) = corpus.rejected
    assert rejected.reason == "bad path: video 'v/._a.mp4' is hidden by a leading dot"
    assert find_videos([tmp_path / "v"]) == [tmp_path / "v/a.mp4"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_video_is_found_whichever_way_its_letters_are_composed(tmp_path, on_disk, written):
    there, name = (unicodedata.normalize(f, "schön/grüße.mp4") for f in (on_disk, written))
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).write_bytes(b"")
    corpus = read_table(write_table(tmp_path / "t.tsv", [("a", name, "x")], COLUMNS[:3]), "train")
    (row,) = corpus.rows
    assert row.video == tmp_path / there
    assert row.video.is_file()
    assert row.source == name
    assert corpus.orphans == ()


def test_a_line_that_is_not_utf8_is_rejected_alone(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_bytes(b"id\tvideo\ttext\na\ta.mp4\t\xff\nb\tb.mp4\tfine\n")
    corpus = read_table(table, "train")
    assert [row.id for row in corpus.rows] == ["b"]
    assert corpus.rejected[0].reason == "malformed row: line 2, not UTF-8"


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_bytes("\ufeffid\tvideo\ttext\r\na\ta.mp4\tgrüße\r\n\r\n".encode())
    (row,) = read_table(table, "train").rows
    assert (row.id, row.text, row.row) == ("a", "grüße", 2)


# What spreadsheets, web pages and speech tools leave in texts, and what is stored.
TEXTS = [
    ("\u200b", "empty text"),
    ("\ufeffhello", "hello"),
    ("hello\u2028world", "hello world"),
    ("he\u00adllo", "hello"),
    ("hello\u0085x", "bad text: it holds the control character U+0085"),
    ("a\vb", "bad text: it holds the control character U+000B"),
    ("NUL\0x", "malformed row: line 8, it holds a NUL character"),
    ("\u00a0 hello\u00a0", "hello"),
    ("ﬁne", "ﬁne"),
    ("今天，天气好！", "今天，天气好！"),
    ("ｈｅｌｌｏ", "ｈｅｌｌｏ"),
    ("scho\u0308n", "schön"),
    ("\u202ehello", "hello"),
    ("😀 hello", "😀 hello"),
    ("...", "..."),
    ("  ", "empty text"),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("\u3164", "empty text"),
    ("nan", "empty text: 'nan' is what programs write for an empty cell"),
    ("NULL", "empty text: 'NULL' is what programs write for an empty cell"),
    ("nan is bread", "nan is bread"),
]


def test_texts_lose_what_cannot_be_seen_and_are_otherwise_kept(tmp_path):
    rows = [(f"t{i}", "a.mp4", written) for i, (written, _) in enumerate(TEXTS)]
    corpus = read_table(write_table(tmp_path / "t.tsv", rows, COLUMNS[:3]), "train")
    read = {row.id: row.text for row in corpus.rows}
    read |= {f"t{r.row - 2}": r.reason for r in corpus.rejected}
    assert [read[f"t{i}"] for i in range(len(TEXTS))] == [stored for _, stored in TEXTS]
    assert corpus.notes == (
        "3 texts held invisible characters (U+00AD, U+202E, U+FEFF), which were removed",
        "1 texts held line breaks or tabs, which became blanks",
    )


def test_quotes_of_csv_are_read_and_counted_and_one_that_is_open_is_a_named_row(tmp_path):
    rows = [
        ("q1", "a.mp4", '"He said ""hello"" to me"'),
        ("q2", "a.mp4", "plain"),
        ("q3", '"a.mp4"', '"with, comma"'),
        ("q5", "a.mp4", 'a 1/2" iron'),
        ("q4", "a.mp4", '"never closed'),
        ("q6", "a.mp4", '"Yes," she said'),
    ]
    corpus = read_table(write_table(tmp_path / "t.tsv", rows, COLUMNS[:3]), "train")
    assert {row.id: row.text for row in corpus.rows} == {
        "q1": 'He said "hello" to me',
        "q2": "plain",
        "q3": "with, comma",
        "q5": 'a 1/2" iron',
    }
    assert corpus.rows[2].source == "a.mp4"
    assert [(r.row, r.reason.partition(";")[0]) for r in corpus.rejected] == [
        (6, "malformed row: line 6, its quotes are broken (a quote is not closed)"),
        (7, "malformed row: line 7, its quotes are broken (a quote closes before its cell ends)"),
    ]
    assert corpus.notes == (
        "3 cells of t.tsv stand in double quotes, as csv writes them; they are read without",
    )


def test_blanks_at_the_ends_of_cells_go(tmp_path):
    rows = [
        ("s1", "a.mp4", "hello ", "train"),
        ("s2", "a.mp4", "  hello", "train "),
        ("s3 ", "a.mp4", "hi", "\u00a0train"),
        ("s4", " a.mp4", "hi", "train"),
    ]
    table = write_table(tmp_path / "t.tsv", rows, ("id ", "video", " text", "split"))
    corpus = read_table(table, "train")
    assert [(r.id, r.source, r.text) for r in corpus.rows] == [
        ("s1", "a.mp4", "hello"),
        ("s2", "a.mp4", "hello"),
        ("s3", "a.mp4", "hi"),
        ("s4", "a.mp4", "hi"),
    ]
    assert (corpus.rejected, corpus.notes) == ((), ())


SPLIT_COLUMNS = ("id", "video", "text", "split")


@pytest.mark.parametrize("other", ["Train", "TRAIN ", "tra in", "train\u200b"])
@pytest.mark.parametrize("asked", ["train", "dev"])
def test_splits_that_case_or_blanks_alone_tell_apart_are_refused(tmp_path, other, asked):
    splits = ["train", "train", other, "dev"]
    rows = [(f"s{i}", "a.mp4", "x", split) for i, split in enumerate(splits)]
    table = write_table(tmp_path / "t.tsv", rows, SPLIT_COLUMNS)
    with pytest.raises(CorpusError) as error:
        read_table(table, asked)
    assert "'train' (2 rows)" in str(error.value)
    assert f"{other.strip()!r} (1 rows)" in str(error.value)


def test_a_split_that_is_there_in_another_case_is_said(tmp_path):
    table = write_table(tmp_path / "t.tsv", [("a", "a.mp4", "x", "Train")], SPLIT_COLUMNS)
    with pytest.raises(CorpusError, match=r"no row of split 'train'.*'Train' differs .* by case"):
        read_table(table, "train")


def test_rows_of_other_splits_are_counted_and_rows_of_none_are_named(tmp_path):
    splits = ["train", "dev", "test", "test", "", "nan"]
    rows = [(f"s{i}", "a.mp4", "x", split) for i, split in enumerate(splits)]
    corpus = read_table(write_table(tmp_path / "t.tsv", rows, SPLIT_COLUMNS), "train")
    assert corpus.notes == ("3 rows belong to other splits: dev (1), test (2)",)
    assert [(r.row, r.reason) for r in corpus.rejected] == [
        (6, "empty split: it may belong to any"),
        (7, "empty split: it may belong to any"),
    ]


def test_what_programs_write_for_an_empty_cell_is_no_signer(tmp_path):
    columns = ("id", "video", "text", "signer", "language")
    table = write_table(tmp_path / "t.tsv", [("a", "a.mp4", "x", "nan", "None")], columns)
    (row,) = read_table(table, "train").rows
    assert (row.signer, row.language) == (None, None)


@pytest.mark.parametrize("clip_id", ["a\u200b", "\u202ea", "a\u00adb"])
def test_an_id_with_an_invisible_character_is_named(tmp_path, clip_id):
    reason = rejected_reason(tmp_path, clip_id, "a.mp4", "text", "", "")
    assert reason.startswith(f"bad id: {clip_id!r} holds a control or an invisible character")


def test_the_split_column_chooses_rows_and_other_columns_are_ignored(tmp_path):
    columns = ("id", "video", "text", "split", "weather", "signer")
    rows = [("a", "a.mp4", "x", "train", "fair", "S1"), ("b", "b.mp4", "y", "dev", "foul", "")]
    table = write_table(tmp_path / "t.tsv", rows, columns)
    (row,) = read_table(table, "dev").rows
    assert (row.id, row.signer, row.split) == ("b", None, "dev")
    with pytest.raises(CorpusError, match=r"no row of split 'test'.*'dev' \(1\), 'train' \(1\)"):
        read_table(table, "test")


def test_videos_that_no_row_names_and_rows_without_a_video_are_orphans(tmp_path):
    for name in (
        "v/a.mp4",
        "v/stray.MP4",
        "v/notes.txt",
        "dev/c.mp4",
        "f/d/0.png",
        "f/e/0.png",
        "v/sub/deep.mp4",
        "else/where.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "v/round.mp4").symlink_to(tmp_path / "v/round.mp4")
    columns = ("id", "video", "text", "split")
    rows = [
        ("a", "v/a.mp4", "x", "train"),
        ("lost", "v/lost.mp4", "x", "train"),
        ("sub", "v/./sub/lost.mp4", "x", "train"),
        ("folder", "f/d", "x", "train"),
        ("nowhere", "no/such/b.mp4", "x", "train"),
        ("file", "v/a.mp4/b.mp4", "x", "train"),
        ("long", f"{'x' * 300}/b.mp4", "x", "train"),
        ("c", "dev/c.mp4", "x", "dev"),
    ]
    table = write_table(tmp_path / "t.tsv", rows, columns)
    corpus = read_table(table, "train")
    assert len(corpus.rows) == 7, "what is not there is planned, and dropped by packing"
    found = [(o.reason.partition(":")[0], o.id) for o in corpus.orphans]
    assert sorted(found) == [
        ("no row", "deep.mp4"),
        ("no row", "e"),
        ("no row", "round.mp4"),
        ("no row", "stray.MP4"),
        ("no video", "file"),
        ("no video", "long"),
        ("no video", "lost"),
        ("no video", "nowhere"),
        ("no video", "sub"),
    ]
    assert read_table(table, "dev").orphans == ()


@pytest.mark.parametrize("suffix", sorted({*VIDEO_SUFFIXES, ".asf", ".mxf", ".ts", ".wmv"}))
def test_what_the_packer_takes_for_a_video_is_one_to_translate(tmp_path, suffix):
    (tmp_path / "a.mp4").write_bytes(b"")
    stray = tmp_path / f"stray{suffix.upper()}"
    stray.write_bytes(b"")
    table = write_table(tmp_path / "t.tsv", [("a", "a.mp4", "x")], ("id", "video", "text"))
    assert [orphan.id for orphan in read_table(table, "train").orphans] == [stray.name]
    assert stray in find_videos([tmp_path])


def test_text_in_another_script_is_flagged_and_kept(tmp_path):
    texts = ["one", "two", "三", "четыре", "5", "six 六"]
    rows = [(f"id{i}", "a.mp4", text) for i, text in enumerate(texts)]
    table = write_table(tmp_path / "t.tsv", rows, ("id", "video", "text"))
    flags = [row.flags for row in read_table(table, "train").rows]
    assert flags == [(), (), ("script:HAN",), ("script:CYRILLIC",), (), ()]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("abc", "LATIN"),
        ("\uff21\uff22", "LATIN"),
        ("カタカナ", "KANA"),
        ("한국", "HANGUL"),
        ("1, 2", None),
    ],
)
def test_the_script_of_a_text_is_that_of_most_letters(text, script):
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,video,text\n", "separated by tabs"),
        ("id\tvideo\n", "no column text"),
        ("id\tid\tvideo\ttext\n", "column id appears more than once"),
        ("id\tvideo\ttext\n", "its splits are none"),
        ("id\tvideo\ttext\nbad\n", "1 rows are malformed"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, content, words):
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(CorpusError, match=words):
        read_corpus("table", tmp_path / "t.tsv", "train")


def test_an_unknown_corpus_and_a_missing_table_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"'phoenix'.*known are table, synthetic"):
        read_corpus("phoenix", tmp_path, "train")
    with pytest.raises(CorpusError, match=r"none.tsv: cannot be read"):
        read_corpus("table", tmp_path / "none.tsv", "train")


def test_the_synthetic_corpus_is_written_once_and_read_as_a_table(tmp_path, monkeypatch):
    from signfuse_dist.synthetic import corpus

    calls = []

    def write(root: Path) -> None:
        calls.append(root)
        columns = ("id", "video", "text", "split", "joints")
        write_table(root / "synthetic.tsv", [("a", "a.mp4", "x", "dev", "a.npz")], columns)

    monkeypatch.setattr(corpus, "write_corpus", write)
    monkeypatch.setattr(corpus, "is_written", lambda root: bool(calls))
    for _ in range(2):
        corpus = read_corpus("synthetic", tmp_path, "dev")
    assert calls == [tmp_path]
    assert (corpus.name, corpus.root, corpus.has_joints) == ("synthetic", tmp_path.name, True)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_a_key_names_one_id_and_cannot_be_a_path(clip_id):
    key = key_of(clip_id)
    assert unquote(key) == clip_id
    assert key.isascii()
    assert not set(key) & set("./\\ \n")
