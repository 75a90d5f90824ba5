"""COCO-WholeBody, MediaPipe's 543 and ``.pose``: points by name, doubt, and files that lie."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from helpers.published_poses import HEIGHT, WIDTH, holistic, signer, wholebody, write_pose
from signfuse_dist.data.holistic import GROUPS, read_holistic
from signfuse_dist.data.joints import PoseError
from signfuse_dist.data.pose_arrays import read_arrays
from signfuse_dist.data.wholebody import WHOLEBODY_133, read_wholebody
from signfuse_dist.skeleton import BODY, FACE, JOINT_INDEX, JOINTS, LEFT_HAND

LEFT = [JOINT_INDEX[name] for name in LEFT_HAND]


def expect(track, joints: np.ndarray, there: set[str]) -> None:
    found = np.isfinite(track.points).all(axis=-1)
    assert [set(np.array(JOINTS)[row]) for row in found] == [there] * len(joints)
    assert np.allclose(track.shares(WIDTH, HEIGHT)[found], joints[found], atol=1e-5)


def write_wholebody(path: Path, form: str) -> Path:
    points, scores = wholebody(signer(3))
    match form:
        case "npz":
            np.savez(path, keypoints=points, scores=scores, width=WIDTH, height=HEIGHT, fps=25)
        case "people":  # a person's axis, and another person who is seen less
            both = np.stack([points / 2, points], axis=1)
            np.savez(path, keypoints=both, keypoint_scores=np.stack([scores / 3, scores], axis=1))
        case "lone":
            path = path.with_suffix(".npy")
            np.save(path, np.concatenate([points, scores[..., None]], axis=-1))
        case _:  # as Uni-Sign's: shares, a list of frames, each with a person's axis
            path = path.with_suffix(".pkl")
            shares = (points / [WIDTH, HEIGHT]).astype(np.float32)
            held = {
                "keypoints": [one[None] for one in shares],
                "scores": [one[None] for one in scores],
            }
            path.write_bytes(pickle.dumps(held, protocol=int(form)))
    return path


@pytest.mark.parametrize("form", ["npz", "people", "lone", "2", "4", "5"])
def test_wholebody_is_read_in_each_form_by_the_names_of_its_points(
    tmp_path: Path, form: str
) -> None:
    track = read_wholebody(write_wholebody(tmp_path / "a.npz", form), 0.2)
    expect(track, signer(3), set(WHOLEBODY_133))
    if form == "npz":
        assert (track.fps, track.size) == (25.0, (WIDTH, HEIGHT))


def test_left_and_right_are_the_signers_in_wholebody() -> None:
    assert WHOLEBODY_133["left_hand_wrist"] == 91
    assert WHOLEBODY_133["right_hand_wrist"] == 112
    assert WHOLEBODY_133["left_shoulder"] == 5
    assert WHOLEBODY_133["face_eye_right"] == 23 + 36  # iBUG begins at the signer's right


def test_a_score_below_the_threshold_is_missing(tmp_path: Path) -> None:
    points, scores = wholebody(signer(2))
    scores[1, 91:112] = 0.15
    np.savez(tmp_path / "a.npz", keypoints=points, scores=scores)
    track = read_wholebody(tmp_path / "a.npz", 0.2)
    assert np.isnan(track.points[1, LEFT]).all()
    assert np.isfinite(track.points[0, LEFT]).all()


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


class Nest:
    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("O",)


def laughs() -> list[object]:
    value: list[object] = [1.0]
    for _ in range(7):
        value = [value] * 1000
    return value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"keypoints": Dangerous()}), "builtins.print"),
        (pickle.dumps({"keypoints": np.array([None, {}])}), "in another form"),
        (pickle.dumps({"keypoints": np.array(["a"])}), "no numbers"),
        (pickle.dumps({"keypoints": laughs()}), "values, or lists"),
        (pickle.dumps({(1, 2): 3}), "neither text nor a number"),
        (pickle.dumps({"a": {1, 2}}), "opcode"),
        (b"\x80\x04c_codecs\nencode\n}b.", "a state for what has none"),
        (pickle.dumps({"keypoints": np.zeros(9)})[:-20], "cannot be read"),
        (b"garbage", "cannot be read"),
        (pickle.dumps({"keypoints": np.zeros((2, 133, 2))}), "no scores or"),
        (pickle.dumps([[1.0], [1.0, 2.0]]), "different shapes"),
    ],
)
def test_a_pickle_of_more_than_arrays_is_refused_and_never_run(
    tmp_path: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(PoseError, match=r"a\.pkl") as caught:
        read_wholebody(tmp_path / "a.pkl", 0.2)
    assert words in str(caught.value)
    assert capsys.readouterr().out == ""


def test_headers_are_believed_only_as_far_as_there_are_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 133, 3)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(2, 133, 3)", b"(9, 133, 3)"))
    with pytest.raises(PoseError, match="does not hold the"):
        read_arrays(tmp_path / "a.npy")
    np.savez(tmp_path / "o.npz", keypoints=np.array([None]))
    with pytest.raises(PoseError, match=r"o\.npz"):
        read_arrays(tmp_path / "o.npz")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(PoseError, match="neither"):
        read_arrays(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_the_543_points_of_mediapipe_are_in_the_published_order(
    tmp_path: Path, suffix: str
) -> None:
    points = holistic(signer(3))
    points[1, 468:489] = np.nan  # the left hand
    points[2, 468:489] = 0
    path = tmp_path / f"a{suffix}"
    np.savez(path, points) if suffix == ".npz" else np.save(path, points)
    track = read_holistic(path, 0.2)
    found = np.isfinite(track.points).all(axis=-1)
    assert found[:, LEFT].all(axis=1).tolist() == [True, False, False]
    assert found.all(axis=1).tolist() == [True, False, False]
    assert np.allclose(track.points[found], signer(3)[found])


@pytest.mark.parametrize("wide", [False, True])
def test_tables_of_mediapipes_points_are_read(tmp_path: Path, wide: bool) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    points, columns = holistic(signer(2)), {}
    if wide:
        start = 0
        for group, (count, _) in GROUPS.items():
            for i in range(count):
                columns[f"x_{group}_{i}"] = points[:, start + i, 0]
                columns[f"y_{group}_{i}"] = points[:, start + i, 1]
            start += count
    else:
        kinds = [(g, i) for g, (count, _) in GROUPS.items() for i in range(count)]
        columns = {
            "frame": np.repeat([7, 8], 543),
            "type": [g for g, _ in kinds] * 2,
            "landmark_index": [i for _, i in kinds] * 2,
            "x": points[..., 0].ravel(),
            "y": points[..., 1].ravel(),
        }
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    expect(read_holistic(tmp_path / "a.parquet", 0.2), signer(2), set(JOINTS))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(PoseError, match=r"b\.parquet is no \.parquet"):
        read_holistic(tmp_path / "b.parquet", 0.2)


def test_a_pose_file_is_read_by_the_names_that_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("pose_format")
    from signfuse_dist.data.pose_files import COMPONENTS, read_pose_file

    track = read_pose_file(write_pose(tmp_path / "a.pose", signer(3)), 0.2)
    expect(track, signer(3), set(JOINTS))
    assert (track.fps, track.size) == (10.0, (WIDTH, HEIGHT))

    body = list(COMPONENTS["POSE_LANDMARKS"])
    kept = {"LEFT_SHOULDER", "RIGHT_SHOULDER"}
    few = [point for point in body if point not in kept]
    track = read_pose_file(write_pose(tmp_path / "b.pose", signer(3), POSE_LANDMARKS=few), 0.2)
    there = {*JOINTS} - {*BODY} | {"left_shoulder", "right_shoulder"}
    expect(track, signer(3), there)
    assert "POSE_LANDMARKS 2" in track.layout


def test_a_file_that_is_no_pose_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pose_format")
    from signfuse_dist.data.pose_files import read_pose_file

    whole = write_pose(tmp_path / "a.pose", signer(3)).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if number % 2 else whole)
        for place in rng.integers(0, min(len(damaged), 2000), 3):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "b.pose").write_bytes(bytes(damaged))
        with suppress(PoseError):  # whatever it reads, it raises nothing else
            read_pose_file(tmp_path / "b.pose", 0.2)


def test_without_the_package_a_pose_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from signfuse_dist.data.pose_files import read_pose_file

    monkeypatch.setitem(sys.modules, "pose_format", None)
    with pytest.raises(PoseError, match=r"signfuse_dist\[poses\]"):
        read_pose_file(tmp_path / "a.pose", 0.2)


def test_the_published_pose_files_have_both_hands_on_their_sides(shared: Path) -> None:
    pytest.importorskip("pose_format")
    from signfuse_dist.data.pose_files import read_pose_file

    files = sorted((shared / "data/poses").rglob("*.pose"))
    if not files:
        pytest.skip("no .pose files there")
    for path in files:
        track = read_pose_file(path, 0.2)
        left, right = (track.points[:, JOINT_INDEX[f"{s}_shoulder"], 0] for s in ("left", "right"))
        assert np.nanmean(left) > np.nanmean(right), path.name
        nose, wrist = (
            np.nanmean(track.points[:, JOINT_INDEX[name]], axis=0)
            for name in ("face_lip_upper", "right_wrist")
        )
        assert 0 < nose[1] < wrist[1] < 1.5, path.name
        assert np.isfinite(track.points[:, [JOINT_INDEX[n] for n in FACE]]).any(), path.name
