"""CSL-News and its like: a JSON list of video, text and pose, without splits."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from helpers.published_poses import HEIGHT, WIDTH, signer, wholebody
from signfuse_dist.corpora import Corpus, CorpusError, read_corpus
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.pack import pack


def write(root: Path, entries: list[object], videos: bool) -> Path:
    (root / "rgb_format").mkdir(parents=True)
    (root / "pose_format").mkdir()
    (root / "CSL_News_Labels.json").write_text(json.dumps(entries))
    points, scores = wholebody(signer(5))
    held = {"keypoints": list((points / [WIDTH, HEIGHT])[:, None]), "scores": list(scores[:, None])}
    for entry in entries:
        if isinstance(entry, dict):
            (root / "pose_format" / entry["pose"]).write_bytes(pickle.dumps(held))
            if videos:
                (root / "rgb_format" / entry["video"]).write_bytes(b"")
    return root


def entry(name: str) -> dict[str, str]:
    return {"video": f"{name}.mp4", "text": f"新闻{name}。", "pose": f"{name}.pkl"}


def read(root: Path, split: str = "train", poses: str | None = None) -> Corpus:
    return read_corpus("csl_news", root, split, poses)


def test_an_entry_is_its_video_text_and_pose(tmp_path: Path) -> None:
    root = write(tmp_path / "c", [entry("a"), 3, entry("a")], videos=True)
    corpus = read(root, poses="wholebody")
    (row,) = corpus.rows
    assert (row.id, row.text, row.language) == ("a", "新闻a。", "zh")
    assert row.video == root / "rgb_format" / "a.mp4"
    assert row.joints == root / "pose_format" / "a.pkl"
    assert [one.reason.partition(":")[0] for one in corpus.rejected] == [
        "malformed row",
        "duplicate id",
    ]
    assert read(root).rows[0].joints is None


def test_splits_follow_from_the_names(tmp_path: Path) -> None:
    root = write(tmp_path / "c", [entry(f"clip{n}") for n in range(400)], videos=True)
    parts = [{row.id for row in read(root, split).rows} for split in ("train", "dev", "test")]
    assert sum(map(len, parts)) == 400
    assert all(parts)


def test_without_videos_the_clips_are_of_joints_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "c", [entry("a"), entry("b")], videos=False)
    summary = pack(
        "csl_news", root, "train", tmp_path / "out", PackConfig(32), poses="wholebody", workers=0
    )
    assert (summary.num_packed, summary.num_frames) == (2, 10)
    assert any("joints alone" in note for note in summary.notes)
    assert load_manifest(tmp_path / "out").packing.extractor == "wholebody"


def test_a_name_that_no_file_can_have_is_a_clip_that_is_not_there(tmp_path: Path) -> None:
    root = write(tmp_path / "c", [entry("a")], videos=False)
    (root / "CSL_News_Labels.json").write_text(
        json.dumps([{**entry("b"), "video": f"{'x' * 300}.mp4"}, entry("a")])
    )
    assert "a" in [row.id for row in read(root, poses="wholebody").rows]


def test_what_is_no_such_list_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "c", [entry("a")], videos=True)
    with pytest.raises(CorpusError, match="of COCO-WholeBody, wholebody"):
        read(root, poses="openpose")
    (root / "CSL_News_Labels.json").write_text("{}")
    with pytest.raises(CorpusError, match="is no list"):
        read(root)
    (root / "CSL_News_Labels.json").write_text("{")
    with pytest.raises(CorpusError, match="cannot be read as JSON"):
        read(root)
    (root / "CSL_News_Labels.json").write_text(
        json.dumps([{**entry("a"), "video": "../a.mp4"}, {**entry("b"), "text": 3}])
    )
    assert {row.reason.partition(":")[0] for row in read(root).rejected} == {
        "bad path",
        "malformed row",
    }
