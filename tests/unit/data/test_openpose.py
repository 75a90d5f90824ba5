"""OpenPose's files: each point at its joint, left and right the signer's, doubt is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.little_clips import write_table, write_video
from helpers.published_poses import HEIGHT, WIDTH, signer, write_openpose
from signfuse_dist.data.joints import NoJoints, PoseError
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.openpose import BODY_25, IBUG_68, read_openpose
from signfuse_dist.data.pack import extract_poses, pack
from signfuse_dist.data.shard import read_clip
from signfuse_dist.data.verify import verify
from signfuse_dist.skeleton import JOINT_INDEX, JOINTS, LEFT_HAND, NUM_JOINTS, RIGHT_HAND

THERE = {*LEFT_HAND, *RIGHT_HAND, *BODY_25, *IBUG_68}


def test_each_point_is_the_joint_of_its_name_and_others_are_missing(tmp_path: Path) -> None:
    joints = signer(3)
    track = read_openpose(write_openpose(tmp_path / "clip", joints), 0.2)
    found = np.isfinite(track.points).all(axis=-1)
    assert [set(np.array(JOINTS)[row]) for row in found] == [THERE] * 3
    assert np.allclose(track.shares(WIDTH, HEIGHT)[found], joints[found])
    assert track.layout == "OpenPose (face 70, hand_left 21, hand_right 21, pose 25)"


def test_a_point_below_the_threshold_and_one_of_zero_are_missing(tmp_path: Path) -> None:
    folder = write_openpose(
        tmp_path / "clip", signer(2), lambda frame, part: 0.1 if part == "hand_left" else 0.6
    )
    left = [JOINT_INDEX[name] for name in LEFT_HAND]
    assert np.isnan(read_openpose(folder, 0.2).points[:, left]).all()
    assert np.isfinite(read_openpose(folder, 0.05).points[:, left]).all()
    assert np.isnan(read_openpose(folder, 0.0).points[:, JOINT_INDEX["left_pinky"]]).all()


def test_a_frame_that_is_not_there_or_shows_nobody_has_no_joints(tmp_path: Path) -> None:
    folder = write_openpose(tmp_path / "clip", signer(4))
    (folder / "clip_000000000001_keypoints.json").unlink()
    (folder / "clip_000000000002_keypoints.json").write_text('{"people": []}')
    found = np.isfinite(read_openpose(folder, 0.2).points).any(axis=(1, 2))
    assert found.tolist() == [True, False, False, True]


def test_of_two_people_the_one_that_is_seen_best_counts(tmp_path: Path) -> None:
    folder = write_openpose(tmp_path / "clip", signer(1))
    path = next(folder.iterdir())
    content = json.loads(path.read_text())
    shadow = {"pose_keypoints_2d": [5.0, 5.0, 0.3] * 25}
    path.write_text(json.dumps({"people": [shadow, *content["people"]]}))
    track = read_openpose(folder, 0.2)
    assert np.allclose(track.shares(WIDTH, HEIGHT)[0, 0], signer(1)[0, 0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "JSONDecodeError"),
        ('{"people": 3}', "people is no list"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "2 numbers, not 3 for each of 25 or 18"),
        ('{"people": [{"face_keypoints_2d": ["a", 2, 3]}]}', "no list of numbers"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_a_file_that_is_no_frame_is_named(tmp_path: Path, content: str, words: str) -> None:
    folder = write_openpose(tmp_path / "clip", signer(2))
    (folder / "clip_000000000001_keypoints.json").write_text(content)
    with pytest.raises(PoseError, match=r"clip/clip_0+1_keypoints\.json") as caught:
        read_openpose(folder, 0.2)
    assert words in str(caught.value)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_video(folder / "0.mp4", 8, width=WIDTH // 4, height=HEIGHT // 4)
    write_openpose(folder / "poses" / "0", signer(8))
    write_openpose(folder / "poses" / "1", signer(6))
    rows = [
        ("film", "a", "0.mp4", "poses/0", "640x360", ""),
        ("alone", "b", "", "poses/1", "640x360", "10"),
    ]
    return write_table(folder / "t.tsv", rows, ("id", "text", "video", "poses", "size", "fps"))


def test_openpose_beside_a_video_and_alone_is_packed(table: Path, tmp_path: Path) -> None:
    summary = pack("table", table, "train", tmp_path / "out", PackConfig(32), workers=0)
    assert summary.dropped == ()
    manifest = load_manifest(tmp_path / "out")
    assert manifest.packing.extractor == "openpose"
    for sample in load_index(tmp_path / "out", manifest.shards[0]).samples:
        clip = read_clip(tmp_path / "out", manifest.shards[0].name, sample.members, frame_size=32)
        shares = signer(8)[: len(clip.pose)] * [1, HEIGHT / WIDTH]
        square = shares + np.array([0, (1 - HEIGHT / WIDTH) / 2])
        assert np.allclose(clip.pose[clip.mask], square[clip.mask], atol=0.01)
        assert clip.record["pose_layout"].startswith("OpenPose")
        assert clip.mask.sum(axis=1).tolist() == [len(THERE)] * len(clip.pose)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("640x360", "360x640", "another shape"),
        ("640x360", "64x36", "lie far outside the picture"),
        ("poses/0", "poses/1", "has 6 frames, the clip at least 9"),
        ("poses/0", "poses/2", "is not there"),
        ("640x360", "wide", "bad size: 'wide'"),
    ],
)
def test_poses_that_do_not_belong_to_the_video_are_an_error_by_name(
    table: Path, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    write_video(table.parent / "0.mp4", 9, width=WIDTH // 4, height=HEIGHT // 4)
    head, film, alone = table.read_text().splitlines()
    table.write_text("\n".join([head, film.replace(old, new), alone]) + "\n")
    summary = pack("table", table, "train", tmp_path / "out", PackConfig(32), workers=0)
    assert [row.id for row in summary.dropped] == ["film"]
    assert reason in summary.dropped[0].reason


def test_published_poses_may_be_a_pose_set_beside_packed_frames(
    table: Path, tmp_path: Path
) -> None:
    head, film, _ = table.read_text().splitlines()
    table.write_text("\n".join([head, film]) + "\n")
    out = tmp_path / "out"
    pack("table", table, "train", out, PackConfig(32), extractor=NoJoints(), workers=0)
    extract_poses("table", table, "train", out, "op", poses="openpose", workers=0)
    assert verify(out / "poses/op") == []
    assert load_manifest(out / "poses/op").packing.extractor == "openpose"


def test_the_published_clip_of_how2sign_is_read(shared: Path) -> None:
    (folder,) = (shared / "data/poses/openpose").iterdir()
    track = read_openpose(folder, 0.2)
    shares = track.shares(1280, 720)
    found = np.isfinite(shares).all(axis=-1)
    assert track.points.shape == (62, NUM_JOINTS, 2)
    left, right = (shares[:, JOINT_INDEX[f"{side}_shoulder"], 0] for side in ("left", "right"))
    assert (left > right).all()  # the signer's left is on the right of the picture
    assert found[:, JOINT_INDEX["nose"]].all()
    assert found[:, : 2 * len(LEFT_HAND)].mean() > 0.5
