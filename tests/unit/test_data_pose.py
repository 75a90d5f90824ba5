from __future__ import annotations

import importlib.abc
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from little_clips import write_joints, write_video

from signfuse_dist.data.pose import (
    JointsFile,
    PoseError,
    choose_extractor,
    import_mediapipe,
    joints_of,
    stacked,
)
from signfuse_dist.data.video import open_video, read_frames
from signfuse_dist.skeleton import FACE_MESH, JOINT_INDEX


def landmarks(count: int, offset: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(x=float(offset + i), y=float(-i)) for i in range(count)]


def test_landmarks_land_on_the_joints_of_their_names():
    joints = joints_of(
        landmarks(21, 100), landmarks(21, 200), landmarks(33, 300), landmarks(468, 1000)
    )
    assert joints[JOINT_INDEX["left_hand_wrist"], 0] == 100
    assert joints[JOINT_INDEX["left_hand_pinky_4"], 0] == 120
    assert joints[JOINT_INDEX["right_hand_thumb_1"], 0] == 201
    assert joints[JOINT_INDEX["nose"], 0] == 300
    assert joints[JOINT_INDEX["right_thumb"], 0] == 322
    for name, landmark in FACE_MESH.items():
        assert tuple(joints[JOINT_INDEX[name]]) == (1000 + landmark, -landmark)


def test_missing_and_non_finite_landmarks_are_zero_and_masked():
    left = landmarks(21, 0)
    left[3].x = math.inf
    pose, mask = stacked([joints_of(left, None, landmarks(33, 1), None).astype(np.float32)])
    assert pose.shape == (1, 75, 2)
    assert np.isfinite(pose).all()
    assert mask[0, :21].sum() == 20
    assert not mask[0, 3]
    assert not mask[0, 21:42].any()
    assert mask[0, 42:65].all()
    assert not mask[0, 65:].any()
    assert not pose[~mask].any()


def test_joints_of_a_file_follow_the_frames_that_are_chosen(tmp_path):
    video = write_video(tmp_path / "v.mp4", 8)
    joints = JointsFile(write_joints(tmp_path / "v.npz", 8, slice(0, 21)))
    with open_video(video) as source:
        pose, mask = joints.extract(read_frames(source, 32, start=0.2, fps=5.0, exact_index=True))
    assert np.allclose(pose[:, 30, 0], [0.12, 0.14, 0.16])
    assert not mask[:, :21].any()
    assert not pose[:, :21].any()
    assert mask[:, 21:].all()


def extract(tmp_path, joints):
    with open_video(write_video(tmp_path / "v.mp4", 8)) as source:
        return JointsFile(joints).extract(read_frames(source, 32))


def test_too_few_joints_are_refused(tmp_path):
    with pytest.raises(PoseError, match=r"v.npz has 5 frames, the clip at least 8"):
        extract(tmp_path, write_joints(tmp_path / "v.npz", 5))


def test_joints_that_are_pickled_damaged_or_misshapen_are_refused(tmp_path):
    pickled, damaged, misshapen = (tmp_path / f"{i}.npz" for i in range(3))
    np.savez(pickled, pose=np.array([{}], dtype=object), mask=np.ones((8, 75), bool))
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    np.savez(misshapen, pose=np.zeros((8, 70, 2), np.float32), mask=np.ones((8, 70), bool))
    for path in (pickled, damaged, misshapen, tmp_path / "none.npz"):
        with pytest.raises(PoseError, match=f"bad joints: {path.name}"):
            extract(tmp_path, path)


class Refusal(importlib.abc.MetaPathFinder):
    def __init__(self, message: str) -> None:
        self.message = message

    def find_spec(self, name, path=None, target=None):
        if name == "mediapipe":
            raise ImportError(self.message)
        return None


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("No module named 'mediapipe'", r"pip install 'signfuse_dist\[pose\]'"),
        ("libGL.so.1: cannot open shared object file", "apt-get install libgl1"),
    ],
)
def test_a_missing_library_says_what_to_install(monkeypatch, message, advice):
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refusal(message), *sys.meta_path])
    with pytest.raises(PoseError, match=advice):
        import_mediapipe()


def test_a_model_file_must_fit_the_mediapipe_that_is_installed(monkeypatch, tmp_path):
    module = "signfuse_dist.data.pose"
    monkeypatch.setattr(f"{module}.metadata.version", lambda name: "9.9")
    monkeypatch.setattr(f"{module}.import_mediapipe", lambda: SimpleNamespace(solutions=1))
    with pytest.raises(PoseError, match="leave the model"):
        choose_extractor(tmp_path / "holistic.task")
    monkeypatch.setattr(f"{module}.import_mediapipe", lambda: SimpleNamespace())
    with pytest.raises(PoseError, match=r"holistic_landmarker.task"):
        choose_extractor()
    with pytest.raises(PoseError, match="no such file"):
        choose_extractor(tmp_path / "holistic.task")


def test_mediapipe_finds_a_person_and_forgets_the_clip_before(shared):
    mediapipe = pytest.importorskip("mediapipe")
    if not hasattr(mediapipe, "solutions"):
        pytest.skip("this mediapipe has no models inside")

    def joints(extractor, name):
        with open_video(shared / "data" / "clips" / name) as source:
            return extractor.extract(read_frames(source, 224, end=0.2))

    fresh, used = choose_extractor(), choose_extractor()
    joints(used, "FOOTBALL.mp4")
    (pose, mask), (again, mask_again) = joints(fresh, "SOUP.mp4"), joints(used, "SOUP.mp4")
    assert (pose == again).all()
    assert (mask == mask_again).all()
    nose, chin = pose[0, JOINT_INDEX["nose"]], pose[0, JOINT_INDEX["face_chin"]]
    assert mask[0, JOINT_INDEX["nose"]]
    assert nose[1] < chin[1] < 0.7
    left, right = pose[0, JOINT_INDEX["left_shoulder"]], pose[0, JOINT_INDEX["right_shoulder"]]
    assert right[0] < 0.5 < left[0], "the signer's left is on the picture's right"
