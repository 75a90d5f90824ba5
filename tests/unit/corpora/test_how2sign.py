"""How2Sign as published: its tables, the forms users save them in, and its traps."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from helpers.published_trees import HOW2SIGN_COLUMNS, how2sign_row, how2sign_table, write_how2sign
from signfuse_dist.cli import build_parser, parse
from signfuse_dist.corpora import Corpus, CorpusError, key_of, read_corpus

VIDEO = "-fZc293MpJk"
RAW = "rgb_front/raw_videos"


def read(root: Path, split: str = "val", corpus: str = "how2sign") -> Corpus:
    return read_corpus(corpus, root, split)


def texts(corpus: Corpus) -> list[str]:
    return [row.text for row in corpus.rows]


def test_a_clip_is_cut_from_the_full_video_at_the_realigned_times(tmp_path):
    write_how2sign(tmp_path, "val", [how2sign_row(VIDEO, 0, 0.26, 6.79, "Hi!")], {})
    corpus = read(tmp_path)
    (row,) = corpus.rows
    assert row.id == "-fZc293MpJk_0-1-rgb_front"
    assert row.source == f"video_level/val/{RAW}/-fZc293MpJk-1-rgb_front.mp4"
    assert row.video == tmp_path / "How2Sign" / row.source
    assert (row.start, row.end, row.text) == (0.26, 6.79, "Hi!")
    assert (row.signer, row.language, row.row) == ("1", "en", 2)
    assert (corpus.name, corpus.root, corpus.has_joints) == ("how2sign", "How2Sign", False)
    assert read(tmp_path / "How2Sign") == corpus, "the root may be the folder How2Sign itself"


SAVED = [('I said, "no".', '"I said, ""no""."'), ("plain; words", '"plain; words"')]


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_the_table_is_read_as_published_and_as_spreadsheets_save_it(tmp_path, separator, end, mark):
    rows = [how2sign_row(VIDEO, i, i, i + 1, saved) for i, (_, saved) in enumerate(SAVED)]
    columns = [f'"{name}"' for name in HOW2SIGN_COLUMNS] if mark else HOW2SIGN_COLUMNS
    write_how2sign(tmp_path, "val", rows, {}, None, separator, columns, end, mark)
    corpus = read(tmp_path)
    assert texts(corpus) == [text for text, _ in SAVED]
    assert [row.row for row in corpus.rows] == [2, 3]
    assert corpus.rejected == ()


def test_a_quote_that_is_not_closed_costs_its_own_row_only(tmp_path):
    rows = [
        how2sign_row(VIDEO, 0, 0, 1, '"never closed'),
        how2sign_row(VIDEO, 1, 1, 2, "fine"),
        how2sign_row(VIDEO, 2, 2, 3, '"closed" too early'),
        how2sign_row(VIDEO, 3, 3, 4, 'a 1/2" iron'),
        how2sign_row(VIDEO, 4, 4, 5, "nul \0"),
    ]
    write_how2sign(tmp_path, "val", rows, {})
    corpus = read(tmp_path)
    assert texts(corpus) == ["fine", 'a 1/2" iron'], "a quote inside an unquoted field is text"
    assert [(r.row, r.reason.partition(" (")[0]) for r in corpus.rejected] == [
        (2, "malformed row: line 2, its quotes are broken"),
        (4, "malformed row: line 4, its quotes are broken"),
        (6, "malformed row: line 6, it holds a NUL character"),
    ]


def test_older_names_of_the_times_are_read(tmp_path):
    columns = [name.removesuffix("_REALIGNED") for name in HOW2SIGN_COLUMNS]
    write_how2sign(
        tmp_path, "val", [how2sign_row(VIDEO, 0, 1.5, 2, "Hi!")], {}, None, "\t", columns
    )
    assert (read(tmp_path).rows[0].start, read(tmp_path).rows[0].end) == (1.5, 2.0)
    columns = [name.replace("REALIGNED", "GUESSED") for name in HOW2SIGN_COLUMNS]
    write_how2sign(tmp_path, "val", [], {}, None, "\t", columns)
    with pytest.raises(CorpusError, match="its times are missing"):
        read(tmp_path)


def test_the_sentence_name_is_the_id_since_two_signers_share_a_sentence_id(tmp_path):
    rows = [how2sign_row("_5CV2f-IG7qY", 3, 0, 1, "one", signer) for signer in (3, 5)]
    rows.append(how2sign_row("G1lN_lhjWC1I", "16_17", 1, 2, "joined"))
    write_how2sign(tmp_path, "val", rows, {})
    corpus = read(tmp_path)
    assert [(row.id, row.video.name, row.signer) for row in corpus.rows] == [
        ("_5CV2f-IG7qY_3-3-rgb_front", "_5CV2f-IG7qY-3-rgb_front.mp4", "3"),
        ("_5CV2f-IG7qY_3-5-rgb_front", "_5CV2f-IG7qY-5-rgb_front.mp4", "5"),
        ("G1lN_lhjWC1I_16_17-1-rgb_front", "G1lN_lhjWC1I-1-rgb_front.mp4", "1"),
    ]
    assert corpus.rejected == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (how2sign_row(VIDEO, 1, "", 2, "text"), "bad time: START_REALIGNED is empty"),
        (how2sign_row(VIDEO, 1, 1, "", "text"), "bad time: END_REALIGNED is empty"),
        (how2sign_row(VIDEO, 1, "1,5", 2, "text"), "bad time: START_REALIGNED '1,5' is not"),
        (how2sign_row(VIDEO, 1, 3, 2, "text"), "bad time: end 2 s is not after start 3 s"),
        (how2sign_row(VIDEO, 1, 1, 2, ""), "empty text"),
        (how2sign_row(VIDEO, 0, 1, 2, "text"), "duplicate id"),
        (how2sign_row("../../x", 1, 1, 2, "text"), "bad id"),
        (("v", "../v-1-rgb_front", "v_1", "v_1-1-rgb_front", "1", "2", "x"), "bad path"),
        (("v", "/etc/v", "v_1", "v_1-1-rgb_front", "1", "2", "x"), "bad path"),
        (("v", "v", "v_1"), "malformed row: line 3, 3 columns where the header has 7"),
        (("", "", "", "", "", "", ""), "empty id"),
    ],
)
def test_a_bad_row_is_dropped_by_name_and_costs_no_other(tmp_path, row, reason):
    rows = [how2sign_row(VIDEO, 0, 0, 1, "a"), row, how2sign_row(VIDEO, 9, 9, 10, "z")]
    write_how2sign(tmp_path, "val", rows, {})
    corpus = read(tmp_path)
    assert texts(corpus) == ["a", "z"]
    (rejected,) = corpus.rejected
    assert rejected.row == 3
    assert rejected.reason.startswith(reason)


def test_precut_clips_are_another_corpus_which_says_what_is_worse(tmp_path):
    row = how2sign_row(VIDEO, 0, 0.26, 6.79, "Hi!")
    write_how2sign(tmp_path, "val", [row], {}, {row[3]: 5})
    corpus = read(tmp_path, corpus="how2sign_precut")
    (clip,) = corpus.rows
    assert clip.source == f"sentence_level/val/{RAW}/-fZc293MpJk_0-1-rgb_front.mp4"
    assert clip.video.is_file()
    assert (clip.start, clip.end, clip.id) == (None, None, row[3])
    assert corpus.name == "how2sign_precut"
    assert "before re-alignment" in corpus.notes[0]
    assert corpus.orphans == ()
    assert not any("re-alignment" in note for note in read(tmp_path).notes)


def test_orphans_of_both_sides_are_listed(tmp_path):
    rows = [
        how2sign_row("here", 0, 0, 1, "a"),
        how2sign_row("lost", 0, 0, 1, "b"),
        how2sign_row("lost", 1, 1, 2, "c"),
    ]
    write_how2sign(tmp_path, "val", rows, {"here-1-rgb_front": 2, "stray-1-rgb_front": 2})
    place = f"video_level/val/{RAW}"
    assert [(o.id, o.reason) for o in read(tmp_path).orphans] == [
        ("stray-1-rgb_front.mp4", f"no row: it lies in {place}, and no row names it"),
        ("lost_0-1-rgb_front", f"no video: {place}/lost-1-rgb_front.mp4 is not there"),
        ("lost_1-1-rgb_front", f"no video: {place}/lost-1-rgb_front.mp4 is not there"),
    ]


def test_splits_and_paths_that_are_not_there_are_named(tmp_path):
    with pytest.raises(CorpusError, match="split 'dev': how2sign has train, val, test"):
        read(tmp_path, "dev")
    with pytest.raises(CorpusError) as error:
        read(tmp_path, "val", "how2sign_precut")
    assert str(how2sign_table(tmp_path, "val")) in str(error.value)
    assert "shards/how2sign.md" in str(error.value)


@pytest.mark.parametrize(("split", "count"), [("val", 1741), ("test", 2357)])
def test_the_published_tables_are_read_whole(shared, tmp_path, split, count):
    """No video is there: a row is planned, and would be dropped as `missing video` by packing."""
    table = how2sign_table(tmp_path, split)
    table.parent.mkdir(parents=True)
    shutil.copyfile(shared / "data/text" / table.name, table)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))  # the whole file as one, quotes over line ends and all
    corpus = read(tmp_path, split)
    assert len(rows) == count == len(corpus.rows) + len(corpus.rejected)
    assert [(r.id, r.text, r.start, r.end) for r in corpus.rows] == [
        (r["SENTENCE_NAME"], r["SENTENCE"], float(r["START_REALIGNED"]), float(r["END_REALIGNED"]))
        for r in rows
    ]
    assert len({key_of(row.id) for row in corpus.rows}) == count
    assert {row.signer for row in corpus.rows} <= {"1", "2", "3", "5", "8", "10"}
    assert {o.reason.partition(":")[0] for o in corpus.orphans} == {"no video"}
    assert len(corpus.orphans) == count
    damaged = sum(bool(re.search("[\x80-\x9f]", row.text)) for row in corpus.rows)
    assert damaged == {"val": 2, "test": 23}[split]
    (note,) = corpus.notes  # and none of another number of rows than was published
    assert note.startswith(f"{damaged} texts hold controls that a wrong encoding has left")


@pytest.mark.parametrize("video", ["-fZc293MpJk_0-1-rgb_front.mp4", "--7E2sU6zP4_10-5-rgb.mp4"])
def test_names_that_begin_with_a_dash_can_be_typed(video):
    for words in (["RUN", f"./{video}"], ["RUN", "--", video]):
        assert parse(build_parser(), ["translate", *words]).videos == [Path(video)]
