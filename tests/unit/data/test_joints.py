from __future__ import annotations

import errno
import importlib.abc
import io
import math
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.little_clips import write_joints, write_video
from signfuse_dist.data.joints import (
    FrameTracker,
    JointsFile,
    NoJoints,
    PoseError,
    joints_of,
    stacked,
)
from signfuse_dist.data.mediapipe import choose_extractor, import_mediapipe, visibility_of
from signfuse_dist.data.video import FrameReader, open_video
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


def test_a_landmark_of_the_body_that_is_seen_less_surely_is_missing():
    body = landmarks(33, 300)
    for row, landmark in enumerate(body):
        landmark.visibility = 0.4 if row == 15 else 0.5
    others = landmarks(21, 100), landmarks(21, 200)  # which say nothing of it
    joints = joints_of(*others, body, landmarks(468, 1000), visibility=0.5)
    missing = np.isnan(joints).any(axis=1)
    assert np.flatnonzero(missing).tolist() == [JOINT_INDEX["left_wrist"]]
    assert not np.isnan(joints_of(*others, body, landmarks(468, 1000))).any()
    assert np.isnan(joints_of(*others, None, None, visibility=0.5)).all(axis=1).sum() == 33


@pytest.mark.parametrize("visibility", [0.5, 0.05, 0.00001, 1.0])
def test_an_extractors_version_says_how_surely_the_body_must_be_seen(monkeypatch, visibility):
    module = "signfuse_dist.data.mediapipe"
    monkeypatch.setattr(f"{module}.metadata.version", lambda name: "0.10.21")
    monkeypatch.setattr(f"{module}.import_mediapipe", lambda: SimpleNamespace(solutions=1))
    plain, asked = choose_extractor(), choose_extractor(visibility=visibility)
    assert plain.version == "0.10.21"
    assert visibility_of(plain.version) == 0
    assert asked.version.startswith("0.10.21+visibility")
    assert visibility_of(asked.version) == visibility


@pytest.mark.parametrize("written", ["", "1.9", "5e-1", ".5", "0.5extra", "nan"])
def test_a_version_with_a_visibility_that_no_extractor_has_is_refused(written):
    with pytest.raises(PoseError, match=rf"visibility{written}': '{written}' is no visibility"):
        visibility_of(f"0.10.21+visibility{written}")


@pytest.mark.parametrize("visibility", [-0.1, 1.5, math.nan])
def test_a_visibility_that_cannot_be_is_refused(visibility):
    with pytest.raises(PoseError, match=rf"visibility {visibility}: must lie between 0 and 1"):
        choose_extractor(visibility=visibility)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_positions_in_pixels_are_refused_and_few_far_ones_are_not(tmp_path: Path) -> None:
    pose = np.full((4, 75, 2), 0.5, np.float32)
    mask = np.ones((4, 75), bool)
    with pytest.raises(PoseError, match=r"100% of the points of p\.npz .* are they in pixels"):
        JointsFile(saved(tmp_path / "p.npz", pose=640 * pose, mask=mask)).read()
    pose[0, :5] = 1e6
    pose[1] = np.inf
    assert JointsFile(saved(tmp_path / "p.npz", pose=pose, mask=mask)).read()[0].shape == (4, 75, 2)
    JointsFile(saved(tmp_path / "p.npz", pose=640 * pose, mask=~mask)).read()


def test_joints_of_another_form_or_that_are_not_there_are_named(tmp_path: Path) -> None:
    other = saved(tmp_path / "w.npz", keypoints=np.zeros((4, 133, 2)))
    with pytest.raises(PoseError, match=r"w\.npz holds no pose and no mask.* with --poses"):
        JointsFile(other).read()
    with pytest.raises(PoseError, match=r"gone\.npz cannot be read \(it is not there\)"):
        JointsFile(tmp_path / "gone.npz").read()


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
        found = joints.extract(FrameReader(source, 32, start=0.2, fps=5.0, exact_index=True))
    pose, mask = found.pose, found.mask
    assert np.allclose(pose[:, 30, 0], [0.12, 0.14, 0.16])
    assert not mask[:, :21].any()
    assert not pose[:, :21].any()
    assert mask[:, 21:].all()


def extract(tmp_path, joints):
    with open_video(write_video(tmp_path / "v.mp4", 8)) as source:
        return JointsFile(joints).extract(FrameReader(source, 32))


def test_too_few_joints_are_refused(tmp_path):
    with pytest.raises(PoseError, match=r"v.npz has 5 frames, the clip at least 8"):
        extract(tmp_path, write_joints(tmp_path / "v.npz", 5))


def test_a_fifo_in_the_place_of_joints_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(PoseError, match=r"bad joints: a\.npz is a FIFO and no file"):
        JointsFile(tmp_path / "a.npz").extract([])


def test_joints_that_are_pickled_damaged_or_misshapen_are_refused(tmp_path):
    pickled, damaged, misshapen = (tmp_path / f"{i}.npz" for i in range(3))
    np.savez(pickled, pose=np.array([{}], dtype=object), mask=np.ones((8, 75), bool))
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    np.savez(misshapen, pose=np.zeros((8, 70, 2), np.float32), mask=np.ones((8, 70), bool))
    for path in (pickled, damaged, misshapen, tmp_path / "none.npz"):
        with pytest.raises(PoseError, match=f"bad joints: {path.name}"):
            extract(tmp_path, path)


def lying_joints(path: Path, frames: int, mask_frames: int | None = None) -> Path:
    """Write an .npz whose headers promise arrays of so many frames, and that holds a few bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        shapes = {"pose": (frames, 75, 2), "mask": (mask_frames or frames, 75)}
        for name, dtype in (("pose", "<f4"), ("mask", "|b1")):
            header = io.BytesIO()
            fields = {"descr": dtype, "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(header, fields)
            file.writestr(f"{name}.npy", header.getvalue() + bytes(100))
    return path


@pytest.mark.parametrize("frames", [1_000_001, 2**31, 2**62])
def test_joints_of_more_frames_than_a_file_may_have_are_refused_by_their_header(tmp_path, frames):
    path = lying_joints(tmp_path / "v.npz", frames)
    with pytest.raises(PoseError, match=f"v.npz has {frames} frames, more than 1000000"):
        extract(tmp_path, path)


def test_joints_that_unpack_to_something_else_than_their_shape_are_refused(tmp_path):
    path = lying_joints(tmp_path / "v.npz", 900_000)
    with pytest.raises(PoseError, match="pose unpacks to 100 bytes and not to the 540000000 of"):
        extract(tmp_path, path)


def test_joints_that_unpack_to_gigabytes_take_no_memory(tmp_path):
    bomb = tmp_path / "v.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        header = io.BytesIO()
        fields = {"descr": "<f4", "fortran_order": False, "shape": (8, 75, 2)}
        np.lib.format.write_array_header_1_0(header, fields)
        with file.open("pose.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(300):
                member.write(bytes(1 << 20))
        mask = io.BytesIO()
        np.save(mask, np.ones((8, 75), bool))
        file.writestr("mask.npy", mask.getvalue())
    assert bomb.stat().st_size < 2_000_000
    tracemalloc.start()
    with pytest.raises(PoseError, match="pose unpacks to 314572800 bytes and not to the 4800 of"):
        extract(tmp_path, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_joints_packed_in_a_way_that_unpacks_unasked_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_BZIP2) as file:
        for name, array in (
            ("pose", np.zeros((8, 75, 2), np.float32)),
            ("mask", np.ones((8, 75), bool)),
        ):
            content = io.BytesIO()
            np.save(content, array)
            file.writestr(f"{name}.npy", content.getvalue())
    with pytest.raises(PoseError, match=r"bad joints: v\.npz"):
        extract(tmp_path, tmp_path / "v.npz")


def test_joints_that_are_compressed_or_of_another_precision_are_read(tmp_path):
    pose, mask = np.full((8, 75, 2), 0.25), np.ones((8, 75), bool)
    for dtype in (np.float16, np.float64):
        np.savez_compressed(tmp_path / "v.npz", pose=pose.astype(dtype), mask=mask, other=pose)
        assert (extract(tmp_path, tmp_path / "v.npz").pose == 0.25).all()


@pytest.mark.timeout(20)
def test_a_fifo_in_the_place_of_joints_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "v.npz")
    with pytest.raises(PoseError, match=r"bad joints: v\.npz is .*not opened"):
        extract(tmp_path, tmp_path / "v.npz")


def test_a_tracker_without_memory_or_disk_is_no_failed_frame(tmp_path):
    for error in (MemoryError(), OSError(errno.EIO, "Input/output error")):
        tracker = Shaky({3})
        tracker.error = error
        with pytest.raises(type(error)):
            tracked(tmp_path, tracker)


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
    module = "signfuse_dist.data.mediapipe"
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
            found = extractor.extract(FrameReader(source, 224, end=0.2))
            return found.pose, found.mask

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


def test_mediapipe_leaves_out_the_wrists_that_it_hardly_sees(shared):
    mediapipe = pytest.importorskip("mediapipe")
    if not hasattr(mediapipe, "solutions"):
        pytest.skip("this mediapipe has no models inside")

    def joints(extractor):
        with open_video(shared / "data" / "clips" / "test_video.mp4") as source:
            return extractor.extract(FrameReader(source, 224, end=0.2))

    kept, asked = joints(choose_extractor()), joints(choose_extractor(visibility=0.5))
    lost = kept.mask & ~asked.mask
    wrists = [JOINT_INDEX["left_wrist"], JOINT_INDEX["right_wrist"]]
    assert lost[:, wrists].any()
    assert not lost[:, JOINT_INDEX["nose"]].any()
    assert not asked.pose[~asked.mask].any()
    assert (asked.pose[asked.mask] == kept.pose[asked.mask]).all()


class Shaky(FrameTracker):
    """Remembers its restarts, and fails at the frames it is told to."""

    name, version = "shaky", "1"
    error: Exception | None = None

    def __init__(self, fails: set[int], at_start: bool = False) -> None:
        self.fails, self.at_start, self.restarts = fails, at_start, []

    def restart(self, after_failure):
        self.restarts.append(after_failure)
        if self.at_start:
            raise PoseError("no model")

    def find(self, picture, number):
        if number in self.fails:
            raise self.error or RuntimeError(f"frame {number} broke it\nand more")
        return np.full((75, 2), 0.5)


def tracked(tmp_path, tracker):
    with open_video(write_video(tmp_path / "v.mp4", 8)) as source:
        return tracker.extract(FrameReader(source, 32))


def test_a_frame_at_which_the_tracker_fails_is_masked_and_counted_and_the_next_is_found(tmp_path):
    tracker = Shaky({0, 3, 4})
    joints = tracked(tmp_path, tracker)
    found = [n not in tracker.fails for n in range(8)]
    assert joints.mask.all(axis=1).tolist() == joints.mask.any(axis=1).tolist() == found
    assert not joints.pose[[0, 3, 4]].any()
    assert (joints.pose[[1, 2, 5]] == joints.pose[7]).all()
    assert (joints.failed_frames, joints.failure) == (3, "RuntimeError frame 0 broke it")
    assert tracker.restarts == [False, True, True, True], "the clip, and after each failure"


def test_a_tracker_that_failed_at_the_end_of_a_clip_starts_the_next_anew(tmp_path):
    tracker = Shaky({7})
    tracked(tmp_path, tracker)
    tracker.fails = set()
    assert tracked(tmp_path, tracker).mask.all()
    assert tracker.restarts == [False, True]
    tracked(tmp_path, tracker)
    assert tracker.restarts == [False, True, False]


def test_a_tracker_that_fails_at_every_frame_leaves_a_clip_without_a_person(tmp_path):
    joints = tracked(tmp_path, Shaky(set(range(8))))
    assert not joints.mask.any()
    assert joints.failed_frames == 8


def test_a_tracker_that_cannot_start_is_an_error_and_no_masked_clip(tmp_path):
    with pytest.raises(PoseError, match="no model"):
        tracked(tmp_path, Shaky(set(), at_start=True))


def test_no_joints_are_masked_for_every_frame(tmp_path):
    joints = tracked(tmp_path, NoJoints())
    assert joints.pose.shape == (8, 75, 2)
    assert not joints.mask.any()
    assert joints.failed_frames == 0


def test_mediapipe_runs_on_one_thread_and_leaves_the_cores_to_other_workers(monkeypatch, tmp_path):
    base = pytest.importorskip("mediapipe.python.solution_base")
    make, graphs = base.calculator_graph.CalculatorGraph, []

    def seen(graph_config):
        graphs.append(graph_config)
        return make(graph_config=graph_config)

    monkeypatch.setattr(base.calculator_graph, "CalculatorGraph", seen)
    tracked(tmp_path, choose_extractor())
    (graph,) = graphs
    assert graph.num_threads == 1
    assert not graph.executor


def test_mediapipe_goes_on_after_a_frame_that_broke_its_graph(tmp_path, monkeypatch):
    mediapipe = pytest.importorskip("mediapipe")
    if not hasattr(mediapipe, "solutions"):
        pytest.skip("this mediapipe has no models inside")
    extractor = choose_extractor()
    shown, find = [], extractor.find

    def broken(picture, number):
        # A picture of a wrong type is refused inside the graph, as a damaged one would be.
        shown.append(extractor._graph)
        return find(picture.astype(np.float32) if number == 1 else picture, number)

    monkeypatch.setattr(extractor, "find", broken)
    joints = tracked(tmp_path, extractor)
    assert joints.failed_frames == 1
    assert joints.failure
    assert shown[0] is shown[1]
    assert shown[1] is not shown[2], "what had broken is not used again"
    assert shown[2] is shown[7]
