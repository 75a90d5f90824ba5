"""Files of poses in the layouts that others publish, drawn for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from signfuse_dist.skeleton import JOINT_INDEX, NUM_JOINTS

WIDTH, HEIGHT = 640, 360


def signer(frames: int) -> np.ndarray:
    """Where each joint is, ``[frames, 75, 2]`` in units of the picture: every one apart."""
    row = np.arange(NUM_JOINTS)
    still = np.stack([0.2 + 0.008 * row, 0.3 + 0.005 * row], axis=-1)
    return still[None] + 0.01 * np.arange(frames)[:, None, None]


def placed(layout: Mapping[str, int], points: int, joints: np.ndarray) -> np.ndarray:
    """Return ``[points, 2]`` with each joint of ``layout`` at its point, in pixels; 0 elsewhere."""
    made = np.zeros((points, 2))
    for joint, point in layout.items():
        made[point] = joints[JOINT_INDEX[joint]] * [WIDTH, HEIGHT]
    return made


def write_openpose(
    folder: Path,
    joints: np.ndarray,
    confidence: Callable[[int, str], float] = lambda frame, part: 0.9,
) -> Path:
    """Write a folder as How2Sign publishes it; ``confidence`` of a frame and a part."""
    from signfuse_dist.data.openpose import BODY_25, HAND_LEFT, HAND_RIGHT, IBUG_68

    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "pose": (BODY_25, 25),
        "face": (IBUG_68, 70),
        "hand_left": (HAND_LEFT, 21),
        "hand_right": (HAND_RIGHT, 21),
    }
    for number, frame in enumerate(joints):
        person: dict[str, object] = {"person_id": 1}
        for part, (layout, count) in parts.items():
            points = placed(layout, count, frame)
            sure = np.where(points.any(axis=1), confidence(number, part), 0)
            person[f"{part}_keypoints_2d"] = np.column_stack([points, sure]).ravel().tolist()
            person[f"{part}_keypoints_3d"] = []
        name = f"{folder.name}_{number:012d}_keypoints.json"
        (folder / name).write_text(json.dumps({"version": 1.3, "people": [person]}))
    return folder


def wholebody(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return COCO-WholeBody's points in pixels ``[frames, 133, 2]`` and scores of 0.9."""
    from signfuse_dist.data.wholebody import WHOLEBODY_133

    points = np.stack([placed(WHOLEBODY_133, 133, frame) for frame in joints])
    return points, np.where(points.any(axis=-1), 0.9, 0.0)


def holistic(joints: np.ndarray) -> np.ndarray:
    """Return MediaPipe's 543 points, shares of the picture with a depth, ``[frames, 543, 3]``."""
    from signfuse_dist.data.holistic import GROUPS

    points = np.full((len(joints), 543, 3), 0.5)
    start = 0
    for count, layout in GROUPS.values():
        for joint, point in layout.items():
            points[:, start + point, :2] = joints[:, JOINT_INDEX[joint]]
        start += count
    return points


def write_pose(path: Path, joints: np.ndarray, fps: float = 10.0, **left_out: list[str]) -> Path:
    """Write a ``.pose`` file with every point of MediaPipe Holistic that is a joint.

    ``left_out`` names points of a component that the file does not have. Layout 0.2 of
    github.com/sign-language-processing/pose, written here so that reading is tested by itself.
    """
    from signfuse_dist.data.pose_files import COMPONENTS

    def text(words: str) -> bytes:
        return struct.pack("<H", len(words)) + words.encode()

    chosen = {
        name: [point for point in points if point not in left_out.get(name, [])]
        for name, points in COMPONENTS.items()
    }
    content = struct.pack("<fHHHH", 0.2, WIDTH, HEIGHT, 0, len(chosen))
    for name, points in chosen.items():
        content += text(name) + text("XYZC") + struct.pack("<HHH", len(points), 0, 0)
        content += b"".join(map(text, points))
    rows = [JOINT_INDEX[COMPONENTS[name][point]] for name in chosen for point in chosen[name]]
    data = np.zeros((len(joints), 1, len(rows), 3), np.float32)
    data[:, 0, :, :2] = joints[:, rows] * [WIDTH, HEIGHT]
    content += struct.pack("<fIH", fps, len(joints), 1)
    content += data.tobytes() + np.ones(data.shape[:3], np.float32).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
