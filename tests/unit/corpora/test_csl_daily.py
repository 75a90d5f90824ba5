"""CSL-Daily as published: two files of annotation, a pickle among them, and known defects."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from helpers.published_trees import CSL_PLACE, csl_entry, write_csl, write_lines
from signfuse_dist.corpora import Corpus, CorpusError, FolderFrames, read_corpus

NAME = "S000020_P0004_T00"
CHARACTERS = ["他", "今", "年", "四", "岁", "。"]


def read(root: Path, split: str = "train") -> Corpus:
    return read_corpus("csl_daily", root, split)


@pytest.mark.parametrize("with_pickle", [True, False])
def test_text_is_the_characters_joined_from_either_annotation(tmp_path, with_pickle):
    entries = [csl_entry(NAME, CHARACTERS)]
    write_csl(tmp_path, {NAME: "train"}, entries, {NAME: 1}, with_pickle=with_pickle)
    corpus = read(tmp_path)
    (row,) = corpus.rows
    assert (row.id, row.text, row.signer, row.language) == (NAME, "他今年四岁。", "P0004", "zh")
    assert row.video == tmp_path / CSL_PLACE / NAME
    assert row.source == f"{CSL_PLACE}/{NAME}"
    assert row.folder == FolderFrames(30.0, ".jpg")
    assert (row.start, row.end, row.row) == (None, None, 2)
    assert (corpus.name, corpus.root, corpus.rejected, corpus.orphans) == (
        "csl_daily",
        tmp_path.name,
        (),
        (),
    )


def test_both_annotations_give_the_same_corpus(tmp_path):
    entries = [csl_entry(f"S{i}_P0001_T00", [*"你好", "，", str(i)]) for i in range(3)]
    splits = {str(entry["name"]): "dev" for entry in entries[:2]}
    write_csl(tmp_path, splits, entries, {})
    first = read(tmp_path, "dev")
    (tmp_path / "sentence_label/csl2020ct_v2.pkl").unlink()
    second = read(tmp_path, "dev")
    assert first.rows == second.rows
    assert [row.text for row in first.rows] == ["你好，0", "你好，1"]


def test_full_width_punctuation_and_case_stay(tmp_path):
    characters = ["Ａ", "A", "，", "？", "！", "“", "\u200b", " "]
    write_csl(tmp_path, {NAME: "test"}, [csl_entry(NAME, characters)], {}, with_map=False)
    corpus = read(tmp_path, "test")
    assert corpus.rows[0].text == "ＡA，？！“"
    assert corpus.notes[0].startswith("1 texts held invisible characters (U+200B)")


def test_a_fifo_in_the_place_of_the_pickle_is_not_opened(tmp_path):
    labels = write_csl(
        tmp_path, {NAME: "dev"}, [csl_entry(NAME, CHARACTERS)], {}, with_pickle=False
    )
    os.mkfifo(labels / "csl2020ct_v2.pkl")
    with pytest.raises(CorpusError, match=r"csl2020ct_v2.pkl: is a FIFO and no file"):
        read(tmp_path, "dev")


@pytest.mark.parametrize(
    "place",
    ["sentence/frames_512x512", "sentence_frames-512x512", "sentences/frames_512x512"],
)
@pytest.mark.parametrize("around", ["", "CSL-Daily"])
def test_each_spelling_of_the_frame_folder_is_found(tmp_path, place, around):
    root = tmp_path / around
    write_csl(root, {NAME: "dev"}, [csl_entry(NAME, CHARACTERS)], {NAME: 1}, place)
    corpus = read(tmp_path, "dev")
    assert corpus.rows[0].video == root / place / NAME
    assert corpus.rows[0].video.is_dir()
    assert corpus.orphans == ()


def test_frames_in_two_places_are_refused(tmp_path):
    write_csl(tmp_path, {NAME: "dev"}, [csl_entry(NAME, CHARACTERS)], {NAME: 1})
    (tmp_path / "sentences/frames_512x512").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"sentence/frames_512x512 and sentences/frames_512x512"):
        read(tmp_path, "dev")


@pytest.mark.parametrize("with_pickle", [True, False])
def test_the_known_defects_are_listed_on_both_sides_and_the_row_is_dropped(tmp_path, with_pickle):
    lost, unused = "S000005_P0004_T00", "S000007_P0003_T00"
    entries = [csl_entry(NAME, CHARACTERS), csl_entry(unused, ["好"], label_gloss=[])]
    splits = {lost: "train", NAME: "train", "S000009_P0000_T00": "dev"}
    write_csl(
        tmp_path, splits, entries, {NAME: 1, unused: 1, "S9_P0_T0": 1}, with_pickle=with_pickle
    )
    file = "csl2020ct_v2.pkl" if with_pickle else "video_map.txt"
    corpus = read(tmp_path)
    assert [row.id for row in corpus.rows] == [NAME]
    assert [(r.row, r.id, r.reason) for r in corpus.rejected] == [
        (2, lost, f"no annotation: {lost} is in split_1.txt and not in {file}")
    ]
    assert [(o.id, o.reason) for o in corpus.orphans] == [
        (lost, f"no annotation: in train of split_1.txt, and not in {file}"),
        ("S9_P0_T0", f"no row: it lies in {CSL_PLACE}, and no row names it"),
        (unused, f"no split: annotated in {file}, and not in split_1.txt"),
    ]
    assert corpus.notes == ("train has 2 rows here; the published csl_daily has 18401",)


def test_a_missing_video_is_planned_and_listed(tmp_path):
    write_csl(tmp_path, {NAME: "dev"}, [csl_entry(NAME, CHARACTERS)], {})
    corpus = read(tmp_path, "dev")
    assert [row.id for row in corpus.rows] == [NAME]
    (orphan,) = corpus.orphans
    assert (orphan.id, orphan.reason) == (NAME, f"no video: {CSL_PLACE}/{NAME} is not there")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "malformed row: it has no list of characters"),
        ("他今年", "malformed row: it has no list of characters"),
        (["他", 4], "malformed row: its characters are no strings"),
        (["\ud800"], "malformed row: its text holds half of a character"),
        (["他"] * 1001, "malformed row: more than 1000 characters"),
        (["他" * 2000], "malformed row: its characters are no strings"),
        ([], "empty text"),
        ([" "], "empty text"),
    ],
)
def test_an_annotation_that_is_no_text_drops_its_row_only(tmp_path, label, reason):
    entries = [csl_entry("a", [], label_char=label), csl_entry("b", CHARACTERS)]
    write_csl(tmp_path, {"a": "dev", "b": "dev"}, entries, {}, with_map=False)
    corpus = read(tmp_path, "dev")
    assert [row.id for row in corpus.rows] == ["b"]
    (rejected,) = corpus.rejected
    assert (rejected.row, rejected.id) == (2, "a")
    assert rejected.reason.startswith(reason)


def test_entries_without_a_name_and_entries_that_come_twice_are_orphans(tmp_path):
    entries = [{"label_char": ["x"]}, csl_entry(NAME, ["一"]), csl_entry(NAME, ["二"]), {"name": 7}]
    write_csl(tmp_path, {NAME: "dev"}, entries, {NAME: 1}, with_map=False)
    corpus = read(tmp_path, "dev")
    assert [row.text for row in corpus.rows] == ["一"]
    assert [(o.id, o.reason.partition(":")[0]) for o in corpus.orphans] == [
        (NAME, "annotated twice"),
        ("entry 0", "no name"),
        ("entry 3", "no name"),
    ]


def test_lines_of_the_split_file_that_nobody_can_place_are_dropped_from_every_split(tmp_path):
    labels = write_csl(tmp_path, {}, [csl_entry(NAME, CHARACTERS)], {})
    lines = ["name|split", f"{NAME}|dev", f"{NAME}|test", "b|dev|more", "c|valid", "a/b|dev"]
    write_lines(labels / "split_1.txt", lines)
    reasons = {
        split: [(r.row, r.reason) for r in read(tmp_path, split).rejected]
        for split in ("train", "dev", "test")
    }
    unplaced = [
        (4, "malformed row: line 4, 3 columns where the header has 2"),
        (5, "malformed row: line 5, its split 'valid' is none of train, dev, test"),
    ]
    assert reasons["train"] == unplaced
    assert reasons["dev"][:2] == unplaced
    assert reasons["dev"][2][1].startswith("bad id: 'a/b' holds a path")
    assert reasons["test"] == [
        (3, f"duplicate id: line 2 has {NAME!r} as well"),
        *unplaced,
    ], "a clip that is in two splits is in the first only"


class Command:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"info": [Command()]}), "more than plain data"),
        (pickle.dumps({"info": "text"}), "no list `info`"),
        (pickle.dumps(["info"]), "no list `info`"),
        (pickle.dumps({"info": []})[:-3], "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_pickle_that_is_more_or_less_than_data_is_refused(tmp_path, monkeypatch, content, words):
    labels = write_csl(tmp_path, {NAME: "dev"}, [csl_entry(NAME, CHARACTERS)], {})
    (labels / "csl2020ct_v2.pkl").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=words) as error:
        read(tmp_path, "dev")
    assert "csl2020ct_v2.pkl" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"sentence_label/split_1.txt.*shards/csl_daily.md"):
        read(tmp_path)
    write_csl(tmp_path, {NAME: "dev"}, [], {}, with_pickle=False, with_map=False)
    with pytest.raises(CorpusError, match=r"looked for .*csl2020ct_v2.pkl, .*video_map.txt"):
        read(tmp_path, "dev")
    with pytest.raises(CorpusError, match="split 'val': csl_daily has train, dev, test"):
        read(tmp_path, "val")
