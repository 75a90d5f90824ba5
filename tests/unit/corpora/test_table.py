from __future__ import annotations

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
from signfuse_dist.evaluation.translate import find_videos

COLUMNS = ("id", "video", "text", "start", "end")


def rejected_reason(folder: Path, *row: object) -> str:
    good = ("good", "good.mp4", "a sentence", "", "")
    table = write_table(folder / "t.tsv", [good, row], COLUMNS)
    corpus = read_table(table, "train")
    assert [r.id for r in corpus.rows] == ["good"], "a bad row takes no other with it"
    (rejected,) = corpus.rejected
    assert rejected.row == 3
    return rejected.reason


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
        (("a", "a.mp4", "text", "nan", ""), "bad time"),
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


def test_a_link_out_of_the_tables_folder_is_rejected(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"")
    (folder / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    assert "is a link out of" in rejected_reason(folder, "a", "a.mp4", "text", "", "")


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


def test_text_is_normalised_and_otherwise_kept_exactly(tmp_path):
    text = '"Cafe\u0301", he said\u2028 — twice '
    table = write_table(tmp_path / "t.tsv", [("a", "a.mp4", text)], ("id", "video", "text"))
    assert read_table(table, "train").rows[0].text == '"Caf\u00e9", he said\u2028 — twice '


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
