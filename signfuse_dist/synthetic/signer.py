"""The synthetic signer: from a posture to 75 joints, and from those to antialiased pixels.

Body units: the origin is the base of the neck, y points down, and the frame is about one unit
wide. Hands are described alike on both sides: ``out`` is the distance outward from the body's
midline and ``down`` the distance below the neck. The signer faces the camera, so the signer's
right hand is on the left of the picture.

The picture is a function of the joints, the look and the card in the hand alone. Whatever lies
below the desk's edge is covered by the desk, which is drawn last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from signfuse_dist.skeleton import JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND

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
        "nose": (0.0, 0.10),
        "face_nose_tip": (0.0, 0.14),
        "face_chin": (0.0, 0.98),
        "face_lip_upper": (0.0, 0.52 - 0.10 * face.mouth_open),
        "face_lip_lower": (0.0, 0.55 + 0.26 * face.mouth_open),
    }
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


Colour = tuple[int, int, int]
SUPERSAMPLING = 4

CARD_COLOURS: dict[str, Colour] = {
    "red": (225, 25, 30),
    "green": (20, 165, 55),
    "blue": (30, 70, 235),
}
_EDGE: Colour = (40, 28, 26)
_HANDS = {"right": RIGHT_HAND, "left": LEFT_HAND}


@dataclass(frozen=True)
class Look:
    """The colours of a signer and of the room. None of them is near a card's colour."""

    skin: Colour
    hair: Colour
    clothes: Colour
    wall: Colour
    desk: Colour


@dataclass(frozen=True)
class Signer:
    """A named signer: skin, hair, how full the hair is, and proportions."""

    name: str
    skin: Colour
    hair: Colour
    long_hair: bool
    body: Body


SIGNERS = (
    Signer("ada", (236, 196, 166), (96, 62, 40), True, Body(shoulder=0.148, hand=0.158)),
    Signer("ben", (196, 144, 108), (38, 30, 28), False, Body(shoulder=0.164, upper_arm=0.208)),
    Signer("chidi", (134, 90, 64), (24, 20, 20), False, Body(forearm=0.194, hand=0.168)),
    Signer("dana", (222, 178, 138), (150, 112, 66), True, Body(head_width=0.103, upper_arm=0.194)),
)
_CLOTHES: tuple[Colour, ...] = ((52, 56, 66), (70, 60, 76), (58, 70, 72), (76, 66, 58))
_WALLS: tuple[Colour, ...] = ((214, 216, 218), (222, 214, 204), (206, 214, 210), (216, 208, 216))
_DESKS: tuple[Colour, ...] = ((150, 128, 108), (132, 128, 126), (168, 150, 130))


def dress(signer: Signer, rng: np.random.Generator) -> tuple[Body, Look]:
    """Return a signer's body and look for one clip: clothes and room vary, place and size a little.

    A chair before a fixed camera. Were they free to move, the contrastive loss (Eq. 21) could tell
    the clips of a batch apart by where the signer sits, and learn nothing of the signs.
    """
    body = signer.body
    shift = (float(rng.uniform(-0.006, 0.006)), float(rng.uniform(-0.004, 0.004)))
    scale = float(rng.uniform(0.99, 1.01))
    clothes = _CLOTHES[rng.integers(len(_CLOTHES))]
    wall, desk = _WALLS[rng.integers(len(_WALLS))], _DESKS[rng.integers(len(_DESKS))]
    placed = Body(
        body.shoulder,
        body.upper_arm,
        body.forearm,
        body.hand,
        body.head_width,
        body.head_height,
        scale,
        shift,
    )
    return placed, Look(signer.skin, signer.hair, clothes, wall, desk)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(part * factor)) for part in colour)
    return red, green, blue


class Canvas:
    """A supersampled picture of one frame, drawn in units of the square frame."""

    def __init__(self, size: int, look: Look, body: Body, joints: Floats) -> None:
        """Start from the bare wall; ``joints`` is ``[75, 2]`` in units of the frame."""
        self.pixels = size * SUPERSAMPLING
        self.look, self.body, self.joints = look, body, joints
        self.image = Image.new("RGB", (self.pixels, self.pixels), look.wall)
        self.draw = ImageDraw.Draw(self.image)

    def _at(self, name: str) -> Floats:
        return np.asarray(self.joints[JOINT_INDEX[name]])

    def _length(self, body_units: float) -> float:
        return body_units * self.body.scale * self.pixels

    def _path(self, points: Sequence[Floats]) -> list[float]:
        return [float(x) for x in (np.stack(points) * self.pixels).ravel()]

    def _disc(self, centre: Floats, rx: float, ry: float, fill: Colour) -> None:
        x, y = centre * self.pixels
        a, b = self._length(rx), self._length(ry)
        self.draw.ellipse((x - a, y - b, x + a, y + b), fill=fill)

    def _limb(self, points: Sequence[Floats], width: float, fill: Colour) -> None:
        self.draw.line(self._path(points), fill=fill, width=max(1, round(self._length(width))))
        for joint in points:
            self._disc(joint, width / 2, width / 2, fill)

    def _polygon(self, points: Sequence[Floats], fill: Colour) -> None:
        self.draw.polygon(self._path(points), fill)

    def torso(self) -> None:
        """Draw neck, shoulders and chest."""
        right, left = self._at("right_shoulder"), self._at("left_shoulder")
        neck, down = (right + left) / 2, np.array([0.0, 0.6])
        self._limb([neck, self._at("face_chin")], 0.075, _shade(self.look.skin, 0.85))
        hips = [left * [0, 1] + [neck[0] + 0.09, 0], right * [0, 1] + [neck[0] - 0.09, 0]]
        self._polygon([right, left, hips[0] + down, hips[1] + down], self.look.clothes)
        self._limb([right, left], 0.085, self.look.clothes)

    def head(self, face: Face, long_hair: bool) -> None:
        """Draw hair, face, eyes, brows, nose and mouth from the head's joints."""
        ears = (self._at("right_ear"), self._at("left_ear"))
        centre, skin = (ears[0] + ears[1]) / 2, self.look.skin
        w, h = self.body.head_width, self.body.head_height
        up = (centre - self._at("face_chin")) / (np.linalg.norm(centre - self._at("face_chin")))
        lift = up * self.body.scale
        if long_hair:
            self._disc(centre + 0.10 * h * lift, 1.22 * w, 1.10 * h, self.look.hair)
            self._limb([e - 0.5 * h * lift for e in ears], 0.09, self.look.hair)
        self._disc(centre + 0.22 * h * lift, 1.08 * w, 0.92 * h, self.look.hair)
        self._disc(centre - 0.06 * h * lift, w, 0.94 * h, skin)
        for side in SIDES:
            self._eye(side, face)
        nose = self._at("face_nose_tip")
        self._limb([nose + 0.12 * h * lift, nose], 0.016, _shade(skin, 0.72))
        self._mouth(face)

    def _eye(self, side: str, face: Face) -> None:
        eye, brow = self._at(f"{side}_eye"), self._at(f"face_brow_{side}")
        height = 0.017 + 0.007 * max(face.brow, 0.0)
        self._disc(eye, 0.021, height, (250, 250, 250))
        self._disc(eye, 0.012, 0.014, _EDGE)
        across = self._at(f"{side}_eye_outer") - self._at(f"{side}_eye_inner")
        fall = np.array([0.0, 0.014 * self.body.scale * min(face.brow, 0.0)])
        self._limb([brow - 0.6 * across - fall, brow + 0.6 * across + fall], 0.020, _EDGE)

    def _mouth(self, face: Face) -> None:
        corners = [self._at("face_mouth_right"), self._at("face_mouth_left")]
        upper, lower = self._at("face_lip_upper"), self._at("face_lip_lower")
        lips = _shade(self.look.skin, 0.55)
        if face.mouth_open > 0.1:
            self._polygon([corners[0], upper, corners[1], lower], (84, 24, 28))
        self._limb([corners[0], upper, corners[1]], 0.016, lips)
        self._limb([corners[0], lower, corners[1]], 0.016, lips)

    def arm(self, side: str) -> None:
        """Draw a sleeve from shoulder to wrist."""
        chain = [self._at(f"{side}_{joint}") for joint in ("shoulder", "elbow", "wrist")]
        self._limb(chain, 0.082, _shade(self.look.clothes, 0.55))
        self._limb(chain, 0.064, _shade(self.look.clothes, 1.45))

    def hand(self, side: str) -> None:
        """Draw a palm and five fingers, each with a dark edge so that they stand apart."""
        points = [self._at(name) for name in _HANDS[side]]
        fingers = [points[i : i + 4] for i in (1, 5, 9, 13, 17)]
        palm = [points[0], *(finger[0] for finger in fingers)]
        for width, fill in ((0.042, _EDGE), (0.027, self.look.skin)):
            for finger in fingers:
                self._limb(finger, width, fill)
            self._polygon(palm, fill)
            self._limb([*palm, palm[0]], width, fill)

    def card(self, side: str, colour: str) -> None:
        """Draw a card held by the hand of ``side``, behind its fingers."""
        wrist, knuckle = self._at(f"{side}_hand_wrist"), self._at(f"{side}_hand_middle_1")
        along = (knuckle - wrist) / np.linalg.norm(knuckle - wrist)
        across = np.array([-along[1], along[0]])
        centre = wrist + 0.155 * self.body.scale * along
        for half, fill in ((0.095, (250, 250, 250)), (0.080, CARD_COLOURS[colour])):
            a, b = half * self.body.scale * along, half * self.body.scale * across
            self._polygon([centre + a + b, centre + a - b, centre - a - b, centre - a + b], fill)

    def desk(self) -> None:
        """Cover everything below the desk's edge."""
        edge = float(self.body.to_frame(np.array([0.0, DESK_EDGE]))[1]) * self.pixels
        self.draw.rectangle((0, edge, self.pixels, self.pixels), fill=self.look.desk)
        lip = edge + self._length(0.02)
        self.draw.rectangle((0, edge, self.pixels, lip), fill=_shade(self.look.desk, 1.2))

    def finish(self) -> NDArray[np.uint8]:
        """Return the picture at its final size, uint8 ``[size, size, 3]``."""
        return np.asarray(self.image.reduce(SUPERSAMPLING), dtype=np.uint8)


def draw_frame(
    size: int, signer: Signer, body: Body, look: Look, joints: Floats, face: Face, card: str | None
) -> NDArray[np.uint8]:
    """Draw one frame, uint8 ``[size, size, 3]``, from joints ``[75, 2]`` in units of the frame."""
    canvas = Canvas(size, look, body, joints)
    canvas.torso()
    canvas.head(face, signer.long_hair)
    for side in ("left", "right"):
        canvas.arm(side)
        if card is not None and side == "right":
            canvas.card(side, card)
        canvas.hand(side)
    canvas.desk()
    return canvas.finish()
