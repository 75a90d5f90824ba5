"""PHOENIX-2014T as published: what becomes of its rows, its folders and its traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.published_trees import PHOENIX, phoenix_row, write_phoenix
from signfuse_dist.corpora import Corpus, CorpusError, FolderFrames, read_corpus
from signfuse_dist.corpora.phoenix14t import ROWS

NAME = "11August_2010_Wednesday_tagesschau-2"
TEXT = "tiefer luftdruck bestimmt in den nächsten tagen unser wetter"
FRAMES = "features/fullFrame-210x260px"


def read(root: Path, split: str = "dev") -> Corpus:
    return read_corpus("phoenix14t", root, split)


def test_a_row_is_its_frame_folder_without_the_1_of_the_column_video(tmp_path):
    anchor = write_phoenix(tmp_path, "dev", [phoenix_row(NAME, TEXT)], {NAME: 1})
    corpus = read(tmp_path)
    (row,) = corpus.rows
    assert (row.id, row.text, row.signer, row.language) == (NAME, TEXT, "Signer08", "de")
    assert row.video == anchor / FRAMES / "dev" / NAME
    assert row.source == f"{FRAMES}/dev/{NAME}"
    assert (row.start, row.end, row.row, row.split) == (None, None, 2, "dev")
    assert row.folder == FolderFrames(25.0, ".png")
    assert (corpus.name, corpus.root, corpus.has_joints) == ("phoenix14t", "PHOENIX-2014-T", False)
    assert (corpus.rejected, corpus.orphans) == ((), ())


@pytest.mark.parametrize("inside", ["", "PHOENIX-2014-T", PHOENIX])
def test_the_root_may_be_the_unpacked_folder_or_one_inside_it(tmp_path, inside):
    root = tmp_path / "PHOENIX-2014-T"
    write_phoenix(root, "test", [phoenix_row(NAME, TEXT)], {NAME: 1}, inside)
    corpus = read(root, "test")
    assert (len(corpus.rows), corpus.root, corpus.orphans) == (1, "PHOENIX-2014-T", ())


def test_a_missing_annotation_names_every_path_that_was_looked_for(tmp_path):
    write_phoenix(tmp_path, "dev", [phoenix_row(NAME, TEXT)], {})
    with pytest.raises(CorpusError) as error:
        read(tmp_path, "test")
    file = "annotations/manual/PHOENIX-2014-T.test.corpus.csv"
    for inside in ("", "PHOENIX-2014-T", PHOENIX):
        assert str(tmp_path / inside / file) in str(error.value)
    assert "shards/phoenix14t.md" in str(error.value)


@pytest.mark.parametrize("split", ["train-complex-annotation", "val", "", "../dev"])
def test_only_the_published_splits_are_splits(tmp_path, split):
    write_phoenix(tmp_path, "train", [phoenix_row(NAME, TEXT)], {})
    with pytest.raises(CorpusError, match="phoenix14t has train, dev, test"):
        read(tmp_path, split)


def test_quotes_are_text_and_swallow_nothing(tmp_path):
    texts = ['"regen', 'schnee "', "er sagt \"ja\" , 'nein' .", "zwei  worte"]
    rows = [phoenix_row(f"c{i}", text) for i, text in enumerate(texts)]
    write_phoenix(tmp_path, "dev", rows, {})
    assert [row.text for row in read(tmp_path).rows] == texts


def test_text_is_made_nfc_and_nothing_else(tmp_path):
    write_phoenix(tmp_path, "dev", [phoenix_row("a", "na\u0308chster REGEN .")], {})
    assert read(tmp_path).rows[0].text == "n\u00e4chster REGEN ."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a|a/1/*.png|-1|-1|Signer01|GLOSS", "malformed row: line 3, 6 columns where"),
        ("a|a/1/*.png|-1|-1|Signer01|GLOSS|text|more", "malformed row: line 3, 8 columns"),
        (phoenix_row("good", "again"), "duplicate id"),
        (phoenix_row("a", " "), "empty text"),
        (phoenix_row("", "text"), "empty id"),
        (phoenix_row("../../test/a", "text"), "bad id"),
        ("a|a/1/*.png|3|-1|Signer01|GLOSS|text", "bad time: start '3' is not -1"),
        ("a|a/1/*.png|-1|9|Signer01|GLOSS|text", "bad time: end '9' is not -1"),
    ],
)
def test_a_bad_row_is_dropped_by_name_and_costs_no_other(tmp_path, row, reason):
    write_phoenix(tmp_path, "dev", [phoenix_row("good", "gut"), row, phoenix_row("z", "ok")], {})
    corpus = read(tmp_path)
    assert [r.id for r in corpus.rows] == ["good", "z"]
    (rejected,) = corpus.rejected
    assert rejected.row == 3
    assert rejected.reason.startswith(reason)


def test_a_frame_folder_that_is_a_link_is_followed(tmp_path):
    anchor = write_phoenix(tmp_path / "corpus", "dev", [phoenix_row("a", "text")], {"b": 1})
    (anchor / FRAMES / "dev" / "a").symlink_to(tmp_path)
    corpus = read(tmp_path / "corpus")
    assert [row.video.is_dir() for row in corpus.rows] == [True]
    assert [orphan.id for orphan in corpus.orphans] == ["b"]


def test_invisible_characters_are_removed_and_counted(tmp_path):
    rows = [phoenix_row("a", "re\u00adgen\u200b "), phoenix_row("b", "\u200b")]
    write_phoenix(tmp_path, "dev", rows, {})
    corpus = read(tmp_path)
    assert [row.text for row in corpus.rows] == ["regen"]
    assert [r.reason for r in corpus.rejected] == ["empty text"]
    assert corpus.notes[0].startswith("1 texts held invisible characters (U+00AD, U+200B)")


def test_orphans_of_both_sides_are_listed(tmp_path):
    rows = [phoenix_row("here", "da"), phoenix_row("lost", "weg"), phoenix_row("mute", "")]
    write_phoenix(tmp_path, "dev", rows, {"here": 1, "stray": 1, "mute": 1})
    corpus = read(tmp_path)
    assert [row.id for row in corpus.rows] == ["here", "lost"], "a missing video is planned"
    assert [(o.id, o.reason) for o in corpus.orphans] == [
        ("stray", f"no row: it lies in {FRAMES}/dev, and no row names it"),
        ("lost", f"no video: {FRAMES}/dev/lost is not there"),
    ]


def test_another_number_of_rows_than_published_is_noted(tmp_path):
    write_phoenix(tmp_path, "dev", [phoenix_row("a", "x")], {})
    assert read(tmp_path).notes == ("dev has 1 rows here; the published phoenix14t has 519",)


def test_an_annotation_with_other_columns_is_refused(tmp_path):
    write_phoenix(tmp_path, "dev", [], {})
    file = tmp_path / PHOENIX / "annotations/manual/PHOENIX-2014-T.dev.corpus.csv"
    file.write_text("name,speaker,translation\na,S,text\n")
    with pytest.raises(CorpusError, match=r"no column name, speaker, translation .*separated by"):
        read(tmp_path)


@pytest.mark.parametrize(("split", "count"), ROWS.items())
def test_the_published_texts_are_read_whole(shared, tmp_path, split, count):
    lines = (shared / f"data/text/phoenix14t.{split}.tsv").read_text("utf-8").split("\n")[1:]
    clips = [line.split("\t") for line in lines if line]
    texts = {name.partition("/")[2]: text.removesuffix(" .") for name, _, text in clips}
    write_phoenix(tmp_path, split, [phoenix_row(*clip) for clip in texts.items()], {})
    corpus = read(tmp_path, split)
    assert len(corpus.rows) + len(corpus.rejected) == count
    assert {row.id: row.text for row in corpus.rows} == texts
    assert corpus.notes == ()
