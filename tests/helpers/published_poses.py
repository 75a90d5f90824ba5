"""Files of poses in the layouts that others publish, drawn for tests."""

from __future__ import annotations

import json
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
