"""``.pose`` files of the package pose-format: MediaPipe Holistic with any choice of its points.

A file names its components and their points, so they are found by name whatever was left out:
``POSE_LANDMARKS`` (``NOSE``, ``LEFT_SHOULDER`` ...), ``FACE_LANDMARKS`` (numbers of the face mesh)
and the two hands. Positions are in pixels of the picture that the header names, each with a
confidence: MediaPipe's visibility for the body, 0 or 1 elsewhere. Left and right are the signer's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from signfuse_dist.data.joints import MOST_FRAMES, PoseError, PoseTrack
from signfuse_dist.data.tracks import confident
from signfuse_dist.files import special_kind
from signfuse_dist.skeleton import BODY, FACE_MESH, JOINT_INDEX, NUM_JOINTS
from signfuse_dist.system_errors import machine_error, machine_fault

_FINGERS = {"THUMB": "thumb", "INDEX_FINGER": "index", "MIDDLE_FINGER": "middle",
            "RING_FINGER": "ring", "PINKY": "pinky"}  # fmt: skip
_KNUCKLES = {"THUMB": ("CMC", "MCP", "IP", "TIP")}
_USUAL = ("MCP", "PIP", "DIP", "TIP")


def _hand(side: str) -> dict[str, str]:
    named = {"WRIST": f"{side}_hand_wrist"}
    for theirs, ours in _FINGERS.items():
        for number, knuckle in enumerate(_KNUCKLES.get(theirs, _USUAL), 1):
            named[f"{theirs}_{knuckle}"] = f"{side}_hand_{ours}_{number}"
    return named


COMPONENTS: Mapping[str, Mapping[str, str]] = {
    "POSE_LANDMARKS": {name.upper(): name for name in BODY},
    "FACE_LANDMARKS": {str(number): name for name, number in FACE_MESH.items()},
    "LEFT_HAND_LANDMARKS": _hand("left"),
    "RIGHT_HAND_LANDMARKS": _hand("right"),
}
"""Component -> point -> joint; what else a file holds (world coordinates, hips) is not read."""
_MOST_BYTES = 2 << 30
_DAMAGED = (
    struct.error,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    RecursionError,
)


def read_pose_file(path: Path, threshold: float) -> PoseTrack:
    """Read a ``.pose`` file; of several people the one that is seen best counts.

    Raises :class:`PoseError` without the package, for a file that is none, for one without any
    component of MediaPipe Holistic, and for one of more than :data:`.MOST_FRAMES`.
    """
    pose = _parsed(path)
    try:
        data = np.asarray(np.ma.filled(pose.body.data, 0.0), dtype=np.float64)
        confidence = np.asarray(pose.body.confidence, dtype=np.float64)
        size = int(pose.header.dimensions.width), int(pose.header.dimensions.height)
        fps = float(pose.body.fps)
        components = [(c.name, list(c.points)) for c in pose.header.components]
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    count = sum(len(points) for _, points in components)
    if data.ndim != 4 or data.shape[2] != count or data.shape[:3] != confidence.shape:
        raise PoseError(
            f"bad poses: {path.name} has {list(data.shape)} positions and "
            f"{list(confidence.shape)} confidences of {count} points"
        )
    if not len(data) or not data.shape[1] or len(data) > MOST_FRAMES:
        raise PoseError(
            f"bad poses: {path.name} has {len(data)} frames of {data.shape[1]} people; at least 1 "
            f"of each is needed, and at most {MOST_FRAMES} frames"
        )
    if min(size) < 1 or not 0 < fps <= 1000 or data.shape[3] < 2:
        raise PoseError(
            f"bad poses: {path.name} is of a picture of {size[0]} x {size[1]}, {fps:g} a second, "
            f"in {data.shape[3]} dimensions"
        )
    person = int(np.nan_to_num(confidence).sum(axis=(0, 2)).argmax())
    points = np.full((len(data), NUM_JOINTS, 2), np.nan)
    used = dict(_joints(components))
    if not used:
        names = ", ".join(name for name, _ in components) or "none"
        raise PoseError(
            f"bad poses: {path.name} has no component of MediaPipe Holistic; it has {names}"
        )
    rows, joints = list(used), list(used.values())
    found = confident(data[:, person, rows, :2], confidence[:, person, rows], threshold)
    points[:, joints] = found / np.array(size)
    layout = ", ".join(f"{name} {len(there)}" for name, there in components)
    return PoseTrack(path.name, points, f".pose ({layout})", fps, size)


def _joints(components: list[tuple[str, list[str]]]) -> Iterator[tuple[int, int]]:
    """Yield the place of each point that is a joint among all points, and the joint's row."""
    place = 0
    for name, points in components:
        known = COMPONENTS.get(name, {})
        for point in points:
            if point in known:
                yield place, JOINT_INDEX[known[point]]
            place += 1


def _parsed(path: Path) -> Any:
    try:
        from pose_format import Pose
    except ImportError as error:
        raise PoseError(
            ".pose files are read by the package pose-format; pip install 'signfuse_dist[poses]'"
        ) from error
    if special_kind(path):
        raise PoseError(
            f"bad poses: {path.name} is {special_kind(path)} and no file; it is not opened"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PoseError(f"bad poses: {path.name} is larger than {_MOST_BYTES} bytes")
        return Pose.read(path.read_bytes())
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, path) from error
        raise PoseError(f"bad poses: {path.name} cannot be read ({error.strerror})") from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PoseError:
    words = str(error).split("\n")[0][:120]
    return PoseError(f"bad poses: {path.name} is no .pose file ({type(error).__name__} {words})")
