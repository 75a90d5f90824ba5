"""OpenPose: a folder a clip with a JSON file a frame, as How2Sign publishes its 2D keypoints.

The body is BODY_25 or COCO's 18 points, the face has 70, each hand 21, each point with x and y in
pixels and a confidence, 0 where it was not found. Of several people in a picture the one with the
most confidence counts. The points of hands are in MediaPipe's order; of the face, the 68 of iBUG
and two pupils, ten have a counterpart. OpenPose's left is the signer's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.joints import MOST_FRAMES, PoseError, PoseTrack
from signfuse_dist.data.tracks import confident
from signfuse_dist.files import special_kind
from signfuse_dist.skeleton import JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND
from signfuse_dist.system_errors import machine_error, machine_fault

BODY_25 = {
    "nose": 0, "right_shoulder": 2, "right_elbow": 3, "right_wrist": 4,
    "left_shoulder": 5, "left_elbow": 6, "left_wrist": 7,
    "right_eye": 15, "left_eye": 16, "right_ear": 17, "left_ear": 18,
}  # fmt: skip
"""Joint -> point of OpenPose's BODY_25."""
COCO_18 = {**BODY_25, "right_eye": 14, "left_eye": 15, "right_ear": 16, "left_ear": 17}
"""Joint -> point of OpenPose's COCO body."""
IBUG_68 = {
    "face_chin": 8, "face_brow_right": 19, "face_brow_left": 24, "face_nose_tip": 30,
    "face_eye_right": 36, "face_eye_left": 45,
    "face_mouth_right": 48, "face_mouth_left": 54, "face_lip_upper": 62, "face_lip_lower": 66,
}  # fmt: skip
"""Joint -> point of the 68 of iBUG, whose first is at the right ear: the brows' point is their
middle, the eyes' the outer corner, the lips' the middle of the inner rim."""
HAND_LEFT = {name: i for i, name in enumerate(LEFT_HAND)}
HAND_RIGHT = {name: i for i, name in enumerate(RIGHT_HAND)}

FRAME_ENDING = "_keypoints.json"
"""Of the file of a frame."""
_NUMBER = re.compile(r"([0-9]+)\Z")
_MOST_BYTES = 4 << 20  # of one frame: some people with all their points are a hundredth of it
_MOST_PEOPLE = 100
_PARTS: Sequence[tuple[str, Mapping[int, Mapping[str, int]]]] = (
    ("pose_keypoints_2d", {25: BODY_25, 18: COCO_18}),
    ("face_keypoints_2d", {70: IBUG_68, 68: IBUG_68}),
    ("hand_left_keypoints_2d", {21: HAND_LEFT}),
    ("hand_right_keypoints_2d", {21: HAND_RIGHT}),
)


def read_openpose(folder: Path, threshold: float) -> PoseTrack:
    """Read the frames of a clip, by the number at the end of their names; missing ones are missing.

    Raises :class:`PoseError` for a folder without such files, and for a file that is none.
    """
    files = _files(folder)
    first, last = min(files), max(files)
    if last - first >= MOST_FRAMES:
        raise PoseError(f"bad poses: {folder.name} has numbers {first} to {last}: too many frames")
    points = np.full((last - first + 1, NUM_JOINTS, 2), np.nan)
    counts: dict[str, int] = {}
    for number, path in files.items():
        for name, part in _person(path).items():
            if counts.setdefault(name, len(part)) != len(part):
                raise PoseError(
                    f"bad poses: {folder.name}/{path.name} has {len(part)} points in {name}, a "
                    f"frame before it {counts[name]}"
                )
            layout = dict(_PARTS)[name][len(part)]
            rows = list(layout.values())
            found = confident(part[rows, :2], part[rows, 2], threshold)
            points[number - first, [JOINT_INDEX[joint] for joint in layout]] = found
    layout_name = ", ".join(f"{name.split('_key')[0]} {n}" for name, n in sorted(counts.items()))
    return PoseTrack(folder.name, points, f"OpenPose ({layout_name})", in_pixels=True)


def _files(folder: Path) -> dict[int, Path]:
    """Return the file of each frame by its number."""
    if not folder.is_dir():
        raise PoseError(f"bad poses: {folder.name} is no folder; OpenPose's has a file a frame")
    files: dict[int, Path] = {}
    try:
        for path in folder.iterdir():
            if path.name.startswith(".") or not path.name.endswith(FRAME_ENDING):
                continue
            number = _NUMBER.search(path.name.removesuffix(FRAME_ENDING))
            if number is None or len(number[1]) > 18:
                raise PoseError(f"bad poses: {folder.name}/{path.name} has no number of a frame")
            if int(number[1]) in files:
                raise PoseError(f"bad poses: {folder.name} has frame {int(number[1])} twice")
            files[int(number[1])] = path
    except OSError as error:
        raise _unreadable(error, folder) from error
    if not files:
        raise PoseError(f"bad poses: {folder.name} holds no file NAME_NUMBER{FRAME_ENDING}")
    return dict(sorted(files.items()))


def _person(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the points ``[n, 3]`` of the person that is seen best, by part; none of nobody."""
    where = f"{path.parent.name}/{path.name}"
    if special_kind(path):
        raise PoseError(f"bad poses: {where} is {special_kind(path)} and no file; it is not opened")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PoseError(f"bad poses: {where} is larger than {_MOST_BYTES} bytes")
        content = json.loads(path.read_bytes())
        people = content["people"]
        if not isinstance(people, list) or len(people) > _MOST_PEOPLE:
            raise ValueError("people is no list, or of too many")
        found = [_parts(person) for person in people]
    except OSError as error:
        raise _unreadable(error, path) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        words = str(error).split("\n")[0][:120]
        raise PoseError(
            f"bad poses: {where} is no frame of OpenPose ({type(error).__name__} {words})"
        ) from error
    return max(found, key=_confidence, default={})


def _parts(person: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    parts: dict[str, NDArray[np.float64]] = {}
    for name, layouts in _PARTS:
        written = person.get(name)
        if not written:
            continue
        if not isinstance(written, list) or not all(type(n) in (int, float) for n in written):
            raise ValueError(f"{name} is no list of numbers")
        if len(written) % 3 or len(written) // 3 not in layouts:
            known = " or ".join(str(count) for count in layouts)
            raise ValueError(f"{name} has {len(written)} numbers, not 3 for each of {known} points")
        parts[name] = np.array(written, dtype=np.float64).reshape(-1, 3)
    return parts


def _confidence(parts: Mapping[str, NDArray[np.float64]]) -> float:
    return float(sum(np.nan_to_num(part[:, 2]).clip(0, 1).sum() for part in parts.values()))


def _unreadable(error: OSError, path: Path) -> Exception:
    if machine_fault(error):
        return machine_error(error, path)
    return PoseError(f"bad poses: {path.name} cannot be read ({error.strerror})")
