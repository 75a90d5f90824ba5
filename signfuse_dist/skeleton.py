"""The skeleton: 75 named joints, named bones, and the three-partition graph of Eq. 4.

Paper: "both hands (42), upper body pose (23), and key facial landmarks (10)", unnamed.
Here: 2 x 21 MediaPipe hand landmarks, MediaPipe pose landmarks 0-22, and face-mesh landmarks 61,
291, 13, 14 (mouth), 105, 334 (brows), 33, 263 (outer eye corners), 1 (nose tip), 152 (chin).
Because: these carry mouthing and brow grammar and tie the face to the body's nose and eyes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.errors import suggest

JOINT_LAYOUT = "signfuse-75"

_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_HAND = ("wrist", *(f"{finger}_{i}" for finger in _FINGERS for i in range(1, 5)))
LEFT_HAND = tuple(f"left_hand_{name}" for name in _HAND)
RIGHT_HAND = tuple(f"right_hand_{name}" for name in _HAND)
BODY = (
    "nose",
    "left_eye_inner", "left_eye", "left_eye_outer",
    "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb",
)  # fmt: skip
FACE_MESH = {
    "face_mouth_right": 61, "face_mouth_left": 291, "face_lip_upper": 13, "face_lip_lower": 14,
    "face_brow_right": 105, "face_brow_left": 334, "face_eye_right": 33, "face_eye_left": 263,
    "face_nose_tip": 1, "face_chin": 152,
}  # fmt: skip
FACE = tuple(FACE_MESH)

JOINTS = (*LEFT_HAND, *RIGHT_HAND, *BODY, *FACE)
JOINT_GROUPS = {"left_hand": LEFT_HAND, "right_hand": RIGHT_HAND, "body": BODY, "face": FACE}
NUM_JOINTS = len(JOINTS)
JOINT_INDEX = {name: i for i, name in enumerate(JOINTS)}
PARTITIONS = ("self", "inward", "outward")
ROOT = "nose"


def _hand_bones(side: str) -> list[tuple[str, str]]:
    bones = []
    for finger in _FINGERS:
        chain = ["wrist", *(f"{finger}_{i}" for i in range(1, 5))]
        bones += list(pairwise(chain))
    return [(f"{side}_hand_{a}", f"{side}_hand_{b}") for a, b in bones]


def _arm_bones(side: str) -> list[tuple[str, str]]:
    return [
        ("nose", f"{side}_shoulder"),
        (f"{side}_shoulder", f"{side}_elbow"),
        (f"{side}_elbow", f"{side}_wrist"),
        *((f"{side}_wrist", f"{side}_{finger}") for finger in ("pinky", "index", "thumb")),
        (f"{side}_wrist", f"{side}_hand_wrist"),
    ]


def _head_bones(side: str) -> list[tuple[str, str]]:
    return [
        ("nose", f"{side}_eye_inner"),
        (f"{side}_eye_inner", f"{side}_eye"),
        (f"{side}_eye", f"{side}_eye_outer"),
        (f"{side}_eye_outer", f"{side}_ear"),
        ("nose", f"mouth_{side}"),
        ("face_nose_tip", f"face_eye_{side}"),
        (f"face_eye_{side}", f"face_brow_{side}"),
        ("face_lip_upper", f"face_mouth_{side}"),
    ]


# The shoulders hang from the nose: MediaPipe has no neck, and an invented joint would not be data.
BONES = (
    *_hand_bones("left"),
    *_hand_bones("right"),
    *_arm_bones("left"),
    *_arm_bones("right"),
    ("left_shoulder", "right_shoulder"),
    *_head_bones("left"),
    *_head_bones("right"),
    ("nose", "face_nose_tip"),
    ("face_nose_tip", "face_lip_upper"),
    ("face_lip_upper", "face_lip_lower"),
    ("face_lip_lower", "face_chin"),
)


def choose_joints(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the joints that these names of joints and of groups mean, in the order of JOINTS.

    None means all. Raises ValueError for a name that is neither.
    """
    if names is None:
        return JOINTS
    known = (*JOINT_GROUPS, *JOINTS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is neither a group of joints ({', '.join(JOINT_GROUPS)}) nor a joint"
            + suggest(unknown[0], known)
        )
    meant = {joint for name in names for joint in JOINT_GROUPS.get(name, (name,))}
    return tuple(joint for joint in JOINTS if joint in meant)


def hops_from_root() -> dict[str, int]:
    """Return the number of bones between each joint and :data:`ROOT`."""
    neighbours = _neighbours()
    hops, queue = {ROOT: 0}, deque([ROOT])
    while queue:
        joint = queue.popleft()
        for other in neighbours[joint]:
            if other not in hops:
                hops[other] = hops[joint] + 1
                queue.append(other)
    return hops


def partitioned_adjacency(joints: Sequence[str] = JOINTS) -> NDArray[np.float64]:
    """Return A_k of Eq. 4, float64 ``[partitions, joints, joints]``, before self-connections.

    ``self`` joins a joint to joints at its own distance from the root (the shoulders), ``inward``
    to neighbours nearer the root, ``outward`` to neighbours farther away. Row i collects from the
    columns.

    Paper: 75 joints. Here: by default. Of some of them (``model.joints``) those are neighbours that
    bones join by way of none but joints that are left out. Because: a corpus may publish three, and
    with 72 more that are always missing the ST-GCN takes 13 times as long.
    """
    hops, place = hops_from_root(), {name: i for i, name in enumerate(joints)}
    adjacency = np.zeros((len(PARTITIONS), len(joints), len(joints)))
    for joint in joints:
        for other in _nearest(joint, place):
            step = hops[other] - hops[joint]
            partition = 0 if step == 0 else 1 if step < 0 else 2
            adjacency[partition, place[joint], place[other]] = 1.0
    return adjacency


def normalized_adjacency(joints: Sequence[str] = JOINTS) -> NDArray[np.float64]:
    """Return D_k^-1/2 (A_k + I) D_k^-1/2 of Eq. 4, float64 ``[partitions, joints, joints]``.

    Degrees are the row sums of A_k + I, so they are at least 1.
    """
    connected = partitioned_adjacency(joints) + np.eye(len(joints))
    scale = 1.0 / np.sqrt(connected.sum(axis=-1))
    normalized: NDArray[np.float64] = scale[:, :, None] * connected * scale[:, None, :]
    return normalized


def _neighbours() -> dict[str, list[str]]:
    neighbours: dict[str, list[str]] = {name: [] for name in JOINTS}
    for a, b in BONES:
        neighbours[a].append(b)
        neighbours[b].append(a)
    return neighbours


def _nearest(joint: str, kept: Container[str]) -> set[str]:
    """Return the kept joints that bones join to one by way of joints that are not kept."""
    neighbours, found = _neighbours(), set[str]()
    seen, queue = {joint}, deque([joint])
    while queue:
        for other in neighbours[queue.popleft()]:
            if other not in seen:
                seen.add(other)
                if other in kept:
                    found.add(other)
                else:
                    queue.append(other)
    return found
