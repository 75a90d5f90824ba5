"""The body of the synthetic signer: from a posture to its 75 joints.

Body units: the origin is the base of the neck, y points down, and the frame is about one unit
wide. Hands are described alike on both sides: ``out`` is the distance outward from the body's
midline and ``down`` the distance below the neck. The signer faces the camera, so the signer's
right hand is on the left of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.skeleton import JOINT_INDEX, NUM_JOINTS

Floats = NDArray[np.float64]

SIDES = {"right": -1.0, "left": 1.0}
DESK_EDGE = 0.335
NECK = (0.5, 0.405)
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")

# A hand is nine numbers, so that hands can be interpolated as vectors.
HAND_FIELDS = ("out", "down", "angle", *(f"{finger}_curl" for finger in _FINGERS), "spread")

_STRETCHED = 0.75  # of its length: from here on an arm lies in the plane of the picture

# Knuckles and finger lengths in units of the hand's length: (forward, towards the thumb), length.
_KNUCKLES = {
    "index": ((0.47, 0.17), 0.45),
    "middle": ((0.50, 0.05), 0.50),
    "ring": ((0.47, -0.07), 0.45),
    "pinky": ((0.42, -0.18), 0.37),
}
_SEGMENTS = np.array([0.45, 0.30, 0.25])
# Out-of-plane angle of each segment of a fully curled finger; its cosine is what the camera sees.
_CURLED = np.radians([75.0, 165.0, 235.0])
_SPREAD = {"index": 17.0, "middle": 4.0, "ring": -10.0, "pinky": -26.0}


@dataclass(frozen=True)
class Body:
    """Proportions and placing of a signer in the frame, lengths in body units."""

    shoulder: float = 0.155
    upper_arm: float = 0.20
    forearm: float = 0.19
    hand: float = 0.162
    head_width: float = 0.098
    head_height: float = 0.125
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def to_frame(self, points: Floats) -> Floats:
        """Map body units ``[..., 2]`` to units of the square frame."""
        origin = np.add(NECK, self.shift)
        return np.asarray(origin + self.scale * points, dtype=np.float64)


@dataclass(frozen=True)
class Face:
    """The face and head: 0 is neutral in every field but ``mouth_width``.

    ``brow``: 1 raised, -1 furrowed. ``mouth_open``: 0 to 1. ``frown``: 1 pulls the corners down.
    ``yaw``: the head turned to the signer's left, -1 to 1. ``roll``: degrees of sideways tilt.
    """

    brow: float = 0.0
    mouth_open: float = 0.0
    mouth_width: float = 1.0
    frown: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class Posture:
    """One instant: both hands (vectors of :data:`HAND_FIELDS`), the face, and a card held up."""

    right: Floats
    left: Floats
    face: Face = field(default_factory=Face)
    card: str | None = None


def _rotate(vector: Floats, degrees: float) -> Floats:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def _finger(base: Floats, along: Floats, length: float, curl: float) -> list[Floats]:
    steps = length * _SEGMENTS * np.cos(curl * _CURLED)
    return [base, *(base + along * reach for reach in np.cumsum(steps))]


def _thumb(forward: Floats, thumbward: Floats, curl: float) -> list[Floats]:
    root, knuckle = 0.10 * forward + 0.12 * thumbward, 0.26 * forward + 0.25 * thumbward
    free = 0.55 * forward + 0.84 * thumbward
    folded = 0.60 * forward - 0.80 * thumbward
    along = (1 - curl) * free + curl * folded
    along = along / np.linalg.norm(along)
    return [root, knuckle, knuckle + 0.19 * along, knuckle + 0.34 * along]


def hand_joints(wrist: Floats, hand: Floats, length: float, side: str) -> Floats:
    """Return the 21 joints ``[21, 2]`` of a hand at ``wrist``, in the units of ``length``."""
    sign, angle, spread = SIDES[side], hand[2], hand[8]
    forward = np.array([-sign * np.sin(np.radians(angle)), -np.cos(np.radians(angle))])
    thumbward = -sign * np.array([-forward[1], forward[0]])
    points = [np.zeros(2), *_thumb(forward, thumbward, hand[3])]
    for (finger, ((ahead, aside), reach)), curl in zip(_KNUCKLES.items(), hand[4:8], strict=True):
        along = _rotate(forward, -sign * spread * _SPREAD[finger])
        points += _finger(ahead * forward + aside * thumbward, along, reach, float(curl))
    joints: Floats = wrist + length * np.stack(points)
    return joints


def _arm(body: Body, hand: Floats, side: str) -> tuple[Floats, Floats, Floats]:
    """Solve shoulder, elbow and wrist; a wrist out of reach is drawn in along its direction."""
    shoulder, target = np.array([body.shoulder, 0.035]), np.asarray(hand[:2])
    reach = target - shoulder
    distance = float(np.linalg.norm(reach)) + 1e-9
    # A hand near its shoulder means an arm that points at the camera and looks shorter.
    facing = float(np.clip(distance / (_STRETCHED * (body.upper_arm + body.forearm)), 0.62, 1.0))
    a, b = facing * body.upper_arm, facing * body.forearm
    clamped = float(np.clip(distance, abs(a - b) + 1e-3, 0.999 * (a + b)))
    along = reach / distance
    foot = (a * a - b * b + clamped * clamped) / (2 * clamped)
    height = np.sqrt(max(a * a - foot * foot, 0.0))
    across = np.array([along[1], -along[0]])
    if across.sum() < 0:  # elbows fall outward and down, never into the chest
        across = -across
    mirror = np.array([SIDES[side], 1.0])
    elbow, wrist = shoulder + foot * along + height * across, shoulder + clamped * along
    return shoulder * mirror, elbow * mirror, wrist * mirror


def _face_points(body: Body, face: Face) -> dict[str, Floats]:
    """Return named points of the head in body units; right is the picture's left."""
    w, h = body.head_width, body.head_height
    lift, mouth = 0.26 * h * face.brow, 0.36 * w * face.mouth_width
    points = {
        "nose": (0.0, 0.10), "face_nose_tip": (0.0, 0.14), "face_chin": (0.0, 0.98),
        "face_lip_upper": (0.0, 0.52 - 0.10 * face.mouth_open),
        "face_lip_lower": (0.0, 0.55 + 0.26 * face.mouth_open),
    }  # fmt: skip
    placed = {name: np.array([x * w, y * h]) for name, (x, y) in points.items()}
    for side, sign in SIDES.items():
        corner = np.array([sign * mouth, 0.53 * h + 0.15 * h * face.frown])
        placed[f"mouth_{side}"] = placed[f"face_mouth_{side}"] = corner
        for name, x in (("eye_inner", 0.24), ("eye", 0.40), ("eye_outer", 0.56)):
            placed[f"{side}_{name}"] = np.array([sign * x * w, -0.10 * h])
        placed[f"face_eye_{side}"] = np.array([sign * 0.58 * w, -0.10 * h])
        inward = 0.08 * w * min(face.brow, 0.0)
        placed[f"face_brow_{side}"] = np.array([sign * (0.42 * w + inward), -0.38 * h - lift])
        placed[f"{side}_ear"] = np.array([sign * w, 0.0])
    return placed


def _place_head(body: Body, face: Face) -> dict[str, Floats]:
    chin, turn = np.array([0.0, -0.045]), np.array([0.30 * body.head_width * face.yaw, 0.0])
    centre = np.array([0.0, -body.head_height])
    return {
        name: chin + _rotate(centre + point + (0 if name.endswith("ear") else turn), face.roll)
        for name, point in _face_points(body, face).items()
    }


def joints_of(body: Body, posture: Posture) -> Floats:
    """Return all joints of a posture, ``[75, 2]`` in units of the square frame."""
    points = _place_head(body, posture.face)
    for side, hand in (("right", posture.right), ("left", posture.left)):
        shoulder, elbow, wrist = _arm(body, hand, side)
        points |= {f"{side}_shoulder": shoulder, f"{side}_elbow": elbow, f"{side}_wrist": wrist}
        fingers = hand_joints(wrist, hand, body.hand, side)
        first = JOINT_INDEX[f"{side}_hand_wrist"]
        names = [name for name, i in JOINT_INDEX.items() if first <= i < first + len(fingers)]
        points |= dict(zip(names, fingers, strict=True))
        for finger, knuckle in (("pinky", "pinky_1"), ("index", "index_1"), ("thumb", "thumb_2")):
            points[f"{side}_{finger}"] = points[f"{side}_hand_{knuckle}"]
    joints = np.zeros((NUM_JOINTS, 2))
    for name, point in points.items():
        joints[JOINT_INDEX[name]] = point
    return body.to_frame(joints)
