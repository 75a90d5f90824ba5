"""RWTH-BOSTON-104's tracks as published: sentences of words, joints alone, and the traps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.published_trees import write_boston104, write_lines
from signfuse_dist.corpora import Corpus, CorpusError, read_corpus, splits_of
from signfuse_dist.corpora.boston104 import video_of
from signfuse_dist.data.boston104_tracks import read_boston104_track
from signfuse_dist.data.joints import PoseError
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import pack
from signfuse_dist.data.shard import read_clip
from signfuse_dist.skeleton import JOINT_INDEX

SENTENCES = {
    "train": {
        "1": (("JOHN", 1, 2), ("WRITE", 3, 4)),
        "3": (("BOOK", 5, 6), ("IX", 0, 1)),
        **{str(n): (("LOVE", 0, 2),) for n in range(10, 40)},
    },
    "test": {"2": (("JOHN", 0, 1), ("IX-1P", 1, 2))},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_boston104(tmp_path / "repository", SENTENCES, 8)
    return tmp_path / "repository"


def read(root: Path, split: str = "train") -> Corpus:
    return read_corpus("boston104", root, split)


def test_a_sentence_is_its_words_in_the_order_in_which_they_begin(root: Path) -> None:
    corpus = read(root)
    texts = {row.id: row.text for row in corpus.rows}
    assert (texts["1"], texts["3"]) == ("JOHN WRITE", "IX BOOK")
    row = corpus.rows[0]
    assert (row.video, row.signer, row.language, row.size) == (None, "woman-1", "en", (312, 242))
    assert (corpus.pose_format, corpus.has_joints, corpus.orphans) == ("boston104", True, ())
    assert any("glosses" in note for note in corpus.notes)
    assert any("train has 32 rows here; the published boston104 has 161" in n for n in corpus.notes)


def test_the_root_may_be_the_checkout_or_its_folder_data(root: Path) -> None:
    assert read(root / "data", "test").rows == read(root, "test").rows
    with pytest.raises(CorpusError, match="no annotations under"):
        read(root / "data" / "nowhere")


def test_fit_and_dev_divide_train_by_the_names_of_its_clips(root: Path) -> None:
    train, fit, dev = ({row.id for row in read(root, s).rows} for s in ("train", "fit", "dev"))
    assert fit | dev == train
    assert not fit & dev
    assert dev
    write_boston104(root, {"train": {**SENTENCES["train"], "99": (("MARY", 0, 1),)}}, 8)
    assert {row.id for row in read(root, "dev").rows} - {"99"} == dev
    assert splits_of("boston104", root) == ("train", "test", "fit", "dev", "spans")


def test_spans_are_the_sentences_of_fit_and_every_run_of_their_words(
    root: Path, tmp_path: Path
) -> None:
    words = (("IX", 4, 5), ("JOHN", 0, 1), ("BOOK", 3, 6))
    write_boston104(root, {"train": {**SENTENCES["train"], "3": words}}, 8)
    corpus, fit = read(root, "spans"), {row.id for row in read(root, "fit").rows}
    assert {video_of(row.id) for row in corpus.rows} == fit
    assert "3" in fit
    found = {
        row.id: (row.text, row.start, row.end) for row in corpus.rows if video_of(row.id) == "3"
    }
    assert found == {
        "3": ("JOHN BOOK IX", None, None),
        "3:1-1": ("JOHN", 0.0, 2 / 30),
        "3:2-2": ("BOOK", 3 / 30, 7 / 30),
        "3:3-3": ("IX", 4 / 30, 6 / 30),
        "3:1-2": ("JOHN BOOK", 0.0, 7 / 30),
        "3:2-3": ("BOOK IX", 3 / 30, 7 / 30),
    }
    pack("boston104", root, "spans", tmp_path / "out", PackConfig(64), workers=0)
    (shard,) = load_manifest(tmp_path / "out").shards
    samples = load_index(tmp_path / "out", shard).samples
    assert {s.id: s.num_frames for s in samples if video_of(s.id) == "3"} == {
        "3": 8,
        "3:1-1": 2,
        "3:2-2": 4,
        "3:3-3": 2,
        "3:1-2": 7,
        "3:2-3": 4,
    }


def test_a_word_without_a_frame_rejects_its_sentence_and_no_other(root: Path) -> None:
    table = root / "data" / "train_words.csv"
    table.write_text(table.read_text().replace("WRITE,3,4", "WRITE,x,4"))
    corpus = read(root)
    assert [(row.id, row.reason) for row in corpus.rejected] == [
        ("1", "bad time: startframe 'x' is no number of a frame")
    ]
    assert len(corpus.rows) == len(SENTENCES["train"]) - 1


def test_tracks_that_no_word_names_and_words_without_tracks_are_said(root: Path) -> None:
    tracks = root / "data" / "hands_condensed.csv"
    kept = [line for line in tracks.read_text().splitlines() if not line.startswith("3,")]
    write_lines(tracks, [*kept, "77,0,1,1,2,2,3,3"])
    corpus = read(root)
    assert [row.id for row in corpus.rejected] == ["3"]
    assert [orphan.id for orphan in corpus.orphans] == ["77"]


def test_hands_and_nose_are_at_the_joints_of_their_names_left_being_the_signers(
    root: Path, tmp_path: Path
) -> None:
    summary = pack("boston104", root, "test", tmp_path / "out", PackConfig(64), workers=0)
    assert (summary.num_packed, summary.dropped) == (1, ())
    manifest = load_manifest(tmp_path / "out")
    (sample,) = load_index(tmp_path / "out", manifest.shards[0]).samples
    clip = read_clip(tmp_path / "out", manifest.shards[0].name, sample.members)
    joints = [JOINT_INDEX[n] for n in ("left_hand_wrist", "right_hand_wrist", "nose")]
    assert clip.mask.sum() == 8 * 3
    assert clip.mask[:, joints].all()
    assert (clip.pose[:, joints[0], 0] > clip.pose[:, joints[1], 0]).all()
    top = (1 - 242 / 312) / 2  # letterboxed
    assert clip.pose[3, joints[0]] == pytest.approx([203 / 312, top + 150 / 312], abs=0.01)
    assert clip.record["fps"] == 30.0
    assert manifest.packing.extractor == "boston104"


def test_a_mark_at_the_corner_is_one_that_was_not_set(root: Path) -> None:
    tracks = root / "data" / "hands_condensed.csv"
    tracks.write_text(tracks.read_text().replace("2,1,201,150", "2,1,0,0"))
    points = read_boston104_track(tracks, "2").points
    assert np.isnan(points[1, JOINT_INDEX["left_hand_wrist"]]).all()
    assert np.isfinite(points[1, JOINT_INDEX["right_hand_wrist"]]).all()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2,one,1,1,2,2,3,3", "holds no numbers"),
        ("2,1,1,1,2,2,3,3", "twice, or wildly"),
        ("2,999999999,1,1,2,2,3,3", "twice, or wildly"),
        ("2,nan,1,1,2,2,3,3", "holds no numbers"),
    ],
)
def test_tracks_that_are_none_are_an_error_by_name(root: Path, line: str, words: str) -> None:
    tracks = root / "data" / "hands_condensed.csv"
    with tracks.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(PoseError, match=words):
        read_boston104_track(tracks, "2")


def test_the_published_files_have_the_published_counts(shared: Path) -> None:
    root = shared / "data/boston104"
    if not root.is_dir():
        pytest.skip("the tracks are absent")
    train, test = read(root), read(root, "test")
    assert (len(train.rows), len(test.rows)) == (161, 40)
    assert (train.rejected, train.orphans, test.rejected) == ((), (), ())
    known = {row.text for row in train.rows}
    assert sum(row.text in known for row in test.rows) == 26
    left, right = (
        np.mean(
            [
                np.nanmean(
                    read_boston104_track(row.joints, row.id).points[:, JOINT_INDEX[joint], 0]
                )
                for row in test.rows
            ]
        )
        for joint in ("left_hand_wrist", "right_hand_wrist")
    )
    assert left > right + 10  # the signer's left is on the right of the picture
