"""OpenASL as published: times, boxes, ids with a colon, videos that are not there any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.published_trees import write_lines
from signfuse_dist.corpora import Box, Corpus, CorpusError, read_corpus

HEADER = "vid\tyid\tstart\tend\traw-text\ttokenized-text\tsplit"
ROWS = [
    'a-b:0-1\ta-b\t00:00:01.500\t00:00:04.25\tHe said "hi\the said\ttrain',
    "a-b:2\ta-b\t00:01:00.000\t00:01:02.000\tMore.\tmore\tvalid",
    "gone:1\tgone\t00:00:00.000\t00:00:02.000\tLost.\tlost\ttrain",
    "bad:1\ta-b\t0:0\t00:00:02.000\tBad.\tbad\ttrain",
    "odd:1\ta-b\t00:00:03.000\t00:00:02.000\tOdd.\todd\ttrain",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lines(tmp_path / "data" / "openasl-v1.0.tsv", [HEADER, *ROWS])
    boxes = {"a-b:0-1": [0.1, -0.01, 0.6, 1.002], "odd:1": [1, 2], "gone:1": "x"}
    (tmp_path / "data" / "bbox-v1.0.json").write_text(json.dumps(boxes))
    (tmp_path / "videos").mkdir()
    for name in ("a-b", "stray"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"")
    return tmp_path


def read(root: Path, split: str = "train") -> Corpus:
    return read_corpus("openasl", root, split)


def test_a_row_is_a_window_of_its_video_with_the_signers_box(root: Path) -> None:
    row = read(root).rows[0]
    assert (row.id, row.text, row.source) == ("a-b:0-1", 'He said "hi', "a-b.mp4")
    assert (row.start, row.end, row.language) == (1.5, 4.25, "en")
    assert row.box == Box(0.1, 0.0, 0.6, 1.0)
    assert row.video == root / "videos" / "a-b.mp4"


def test_traps_are_dropped_by_name_and_lost_videos_are_orphans(root: Path) -> None:
    corpus = read(root)
    reasons = {row.id: row.reason for row in corpus.rejected}
    assert reasons["bad:1"] == "bad time: start '0:0' is not HH:MM:SS.mmm"
    assert reasons["odd:1"].startswith("bad time: end 2 s is not after start 3 s")
    assert reasons["gone:1"].startswith("bad box")
    assert [orphan.id for orphan in corpus.orphans] == ["stray.mp4"]
    (root / "data" / "bbox-v1.0.json").unlink()
    corpus = read(root)
    assert {orphan.id for orphan in corpus.orphans} == {"gone.mp4", "stray.mp4"}
    assert any("2 of 2 clips have no box" in note for note in corpus.notes)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_of_a_split_that_is_none_is_named_in_every_split(root: Path, split: str) -> None:
    there = [
        f"{name}:9\ta-b\t00:00:01.000\t00:00:02.000\tHi.\thi\t{name}"
        for name in ("Train", "test", "tset")
    ]
    write_lines(root / "data" / "openasl-v1.0.tsv", [HEADER, *ROWS, *there])
    reasons = [row.reason for row in read(root, split).rejected]
    for name in ("Train", "tset"):
        assert any(f"its split '{name}' is none of train, valid, test" in r for r in reasons)


@pytest.mark.parametrize("split", ["valid", "dev", "val"])
def test_the_development_split_has_three_names(root: Path, split: str) -> None:
    (row,) = read(root, split).rows
    assert (row.id, row.split) == ("a-b:2", split)


def test_what_is_not_there_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no row of split 'test'"):
        read(root, "test")
    with pytest.raises(CorpusError, match="no annotations under"):
        read(tmp_path / "videos")
    (root / "data" / "bbox-v1.0.json").write_text("[" * 100_000)
    with pytest.raises(CorpusError, match="cannot be read as JSON"):
        read(root)
