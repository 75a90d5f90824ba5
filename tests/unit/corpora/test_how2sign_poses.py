"""How2Sign's keypoints: cut at the re-aligned times though they follow the older ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.little_clips import write_video
from helpers.published_poses import signer, write_openpose
from helpers.published_trees import how2sign_row, write_how2sign, write_lines
from signfuse_dist.corpora import Corpus, CorpusError, read_corpus
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import pack
from signfuse_dist.data.shard import read_clip
from signfuse_dist.skeleton import JOINT_INDEX

ROWS = [how2sign_row("v", 0, 1.0, 2.0, "one"), how2sign_row("v", 1, 3.0, 3.5, "two")]
NAMES = [row[3] for row in ROWS]
JSON = "How2Sign/sentence_level/val/rgb_front/features/openpose_output/json"
NOSE = JOINT_INDEX["nose"]


def write(root: Path, videos: bool, first: bool = True, frames: int = 30) -> Path:
    write_how2sign(root, "val", ROWS, {"v-1-rgb_front": 50} if videos else {})
    if videos:
        place = root / "How2Sign/video_level/val/rgb_front/raw_videos"
        write_video(place / "v-1-rgb_front.mp4", 50, 64, 36)
    for name in NAMES:
        write_openpose(root / JSON / name, 2 * signer(frames))  # drawn for half as wide a picture
    if first:
        lines = ["SENTENCE_NAME\tSTART\tEND", f"{NAMES[0]}\t0.5\t1.75", f"{NAMES[1]}\t2.9\t4.15"]
        folder = root / "How2Sign/sentence_level/val/text/en/raw_text"
        write_lines(folder / "how2sign_val.csv", lines)
    return root


def read(root: Path, corpus: str = "how2sign") -> Corpus:
    return read_corpus(corpus, root, "val", "openpose")


def clips(root: Path, out: Path, corpus: str = "how2sign") -> dict:
    summary = pack(corpus, root, "val", out, PackConfig(64), poses="openpose", workers=0)
    assert summary.dropped == ()
    shard = load_manifest(out).shards[0]
    return {s.id: read_clip(out, shard.name, s.members) for s in load_index(out, shard).samples}


def nose(clip) -> np.ndarray:
    return clip.pose[:, NOSE, 0]


def test_beside_full_videos_the_first_table_says_where_the_keypoints_begin(tmp_path: Path) -> None:
    packed = clips(write(tmp_path / "c", videos=True), tmp_path / "out")
    clip = packed[NAMES[0]]
    # Seconds 1 to 2 of a video of 10 frames a second; the keypoints begin at 0.5.
    expected = signer(30)[:, NOSE, 0]
    assert len(clip.frames) == 10
    assert np.allclose(nose(clip), expected[5:15], atol=0.01)
    assert len(packed[NAMES[1]].frames) == 5
    assert clip.record["pose_layout"].startswith("OpenPose")


def test_without_videos_the_window_is_cut_out_of_the_keypoints(tmp_path: Path) -> None:
    packed = clips(write(tmp_path / "c", videos=False), tmp_path / "out")
    expected = signer(30)[:, NOSE, 0]
    whole = packed[NAMES[0]]  # its window goes on after the keypoints end
    assert np.allclose(nose(whole), expected[12:], atol=0.01)
    clip = packed[NAMES[1]]
    assert clip.record["fps"] == 24.0
    assert clip.record["pictures"] is False
    assert np.allclose(nose(clip), expected[3:15], atol=0.01)  # 0.1 to 0.6 s at 24 a second


def test_without_the_first_table_whole_keypoints_stand_alone_and_videos_are_refused(
    tmp_path: Path,
) -> None:
    corpus = read(write(tmp_path / "c", videos=False, first=False))
    assert [(row.start, row.end) for row in corpus.rows] == [(None, None)] * 2
    assert any("before re-alignment" in note for note in corpus.notes)
    assert corpus.orphans == ()
    with pytest.raises(CorpusError, match=r"how2sign_val\.csv"):
        read(write(tmp_path / "d", videos=True, first=False))


def test_the_ready_cut_clips_have_the_keypoints_of_their_own_frames(tmp_path: Path) -> None:
    root = tmp_path / "c"
    write(root, videos=False, frames=12)
    for name in NAMES:
        place = root / "How2Sign/sentence_level/val/rgb_front/raw_videos"
        write_video(place / f"{name}.mp4", 12, 64, 36)
    packed = clips(root, tmp_path / "out", "how2sign_precut")
    assert np.allclose(nose(packed[NAMES[0]]), signer(12)[:, NOSE, 0], atol=0.01)
    assert len(packed[NAMES[0]].frames) == 12


def test_poses_of_another_format_or_corpus_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "c", videos=False)
    with pytest.raises(CorpusError, match="publishes those of openpose"):
        read_corpus("how2sign", root, "val", "pose")
    with pytest.raises(CorpusError, match="write a table with a column `poses`"):
        read_corpus("phoenix14t", root, "dev", "pose")
