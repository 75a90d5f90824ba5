"""The signs of the synthetic language, and how a sentence of them is performed in time.

A sign is a place, a handshape, a direction and a movement for the right hand, and often for the
left. Signs that share a slot differ in place above all, so that 64 pixels are enough to tell
them apart. Between signs the hands travel straight; the left hand rests behind the desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from signfuse_dist.synthetic.language import COLOURS, JOINTS_ONLY, Mode, SignLanguage
from signfuse_dist.synthetic.signer import Face, Floats, Posture

# Curl of thumb, index, middle, ring, pinky (0 stretched, 1 in the fist), then spread.
SHAPES = {
    "fist": (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    "flat": (0.7, 0.0, 0.0, 0.0, 0.0, 0.0),
    "five": (0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    "point": (1.0, 0.0, 1.0, 1.0, 1.0, 0.0),
    "vee": (1.0, 0.0, 0.0, 1.0, 1.0, 0.9),
    "ell": (0.0, 0.0, 1.0, 1.0, 1.0, 0.0),
    "horns": (0.0, 1.0, 1.0, 1.0, 0.0, 0.6),
    "claw": (0.3, 0.5, 0.5, 0.5, 0.5, 1.0),
}
# A movement is the wrist's offsets, (outward, down), at equal times of the hold.
Movement = tuple[tuple[float, float], ...]
STILL: Movement = ((0.0, 0.0), (0.0, 0.0))
UP_DOWN: Movement = ((0.0, -0.05), (0.0, 0.05), (0.0, -0.05))
RISE: Movement = ((0.0, 0.09), (0.0, -0.09))
SINK: Movement = ((0.0, -0.05), (0.0, 0.06))
OUTWARD: Movement = ((-0.05, 0.0), (0.06, 0.0))
CIRCLE: Movement = ((0.0, -0.04), (0.04, 0.0), (0.0, 0.04), (-0.04, 0.0), (0.0, -0.04))
COUNTER: Movement = ((0.0, 0.04), (-0.04, 0.0), (0.0, -0.04), (0.04, 0.0), (0.0, 0.04))


@dataclass(frozen=True)
class Hand:
    """One hand of a sign: place in body units, shape, direction and movement.

    ``angle``: degrees from upward towards the body's midline; 90 points across the body.
    """

    out: float
    down: float
    angle: float
    shape: str
    movement: Movement = STILL

    def track(self) -> Floats:
        """Return the hand at each point of its movement, ``[points, 9]``."""
        shape = SHAPES[self.shape]
        rows = [(self.out + x, self.down + y, self.angle, *shape) for x, y in self.movement]
        return np.array(rows)


@dataclass(frozen=True)
class Sign:
    """A sign. ``left`` None rests; ``hidden`` says that the left hand signs behind the desk."""

    right: Hand
    left: Hand | None = None
    mouth_open: float = 0.0
    card: str | None = None
    hidden: bool = False


REST = Hand(0.19, 0.40, 165.0, "claw")


def _two(hand: Hand, mouth_open: float = 0.0, left: Movement | None = None) -> Sign:
    mirror = Hand(hand.out, hand.down, hand.angle, hand.shape, left or hand.movement)
    return Sign(hand, mirror, mouth_open)


def _hidden(right: Hand, angle: float, shape: str) -> Sign:
    return Sign(right, Hand(REST.out, REST.down, angle, shape), hidden=True)


_PARENT = Hand(0.17, 0.19, 90.0, "ell")
_HINGE = Hand(0.29, 0.16, -30.0, "flat", OUTWARD)
_CARD = Hand(0.20, 0.10, 25.0, "flat")

SIGNS = {
    "yesterday": Sign(Hand(0.25, -0.02, -35.0, "horns", OUTWARD), mouth_open=0.6),
    "today": _two(Hand(0.10, 0.24, 150.0, "flat", SINK)),
    "tomorrow": Sign(Hand(0.24, -0.20, 10.0, "point", RISE)),
    "box": _two(Hand(0.17, 0.19, 0.0, "flat"), mouth_open=0.7),
    "door": Sign(Hand(0.05, 0.22, 0.0, "flat", OUTWARD), Hand(0.05, 0.22, 0.0, "flat")),
    "car": _two(Hand(0.12, 0.14, 20.0, "fist", UP_DOWN), left=UP_DOWN[1:] + UP_DOWN[1:2]),
    "gate": _two(Hand(0.12, 0.15, 65.0, "five", OUTWARD)),
    **{colour: Sign(_CARD, card=colour) for colour in COLOURS},
    "big": _two(Hand(0.29, 0.06, -20.0, "five", OUTWARD), mouth_open=1.0),
    "mother": _hidden(_PARENT, 115.0, "five"),
    "father": _hidden(_PARENT, 205.0, "point"),
    "teacher": Sign(Hand(0.15, -0.10, 30.0, "flat", OUTWARD), mouth_open=0.6),
    "baker": _two(Hand(0.09, 0.22, 75.0, "claw", CIRCLE), 0.8, COUNTER),
    "open": _hidden(_HINGE, 110.0, "flat"),
    "close": _hidden(_HINGE, 215.0, "fist"),
    "paint": Sign(Hand(0.27, 0.02, 35.0, "vee", (*UP_DOWN, *UP_DOWN[1:])), mouth_open=0.4),
    "sell": _two(Hand(0.22, 0.22, -45.0, "five", OUTWARD), mouth_open=0.5),
}


def _second() -> dict[str, Sign]:
    """Return the second language: every word has the sign that another word has in the first.

    Words keep their channel, so that what one stream alone can tell is the same in both languages.
    """
    one, other = JOINTS_ONLY
    whole = [word for word in SIGNS if word not in {*COLOURS, *one, *other}]
    changed = dict(zip(whole, whole[5:] + whole[:5], strict=True))
    changed |= dict(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True))
    changed |= dict(zip((*one, *other), (*other, *one), strict=True))
    return {word: SIGNS[changed[word]] for word in SIGNS}


SIGNS_OF: dict[SignLanguage, dict[str, Sign]] = {"first": SIGNS, "second": _second()}

_REST_SECONDS, _TRAVEL_SECONDS, _HOLD_SECONDS, _HIDDEN_SECONDS = 0.06, 0.16, 0.27, 0.36
_SHAPING_SECONDS = 0.05
_PLACE_JITTER, _ANGLE_JITTER = 0.009, 5.0


@dataclass
class _Track:
    """Key frames of one hand."""

    times: list[float]
    hands: list[Floats]

    def add(self, start: float, end: float, hands: Floats) -> None:
        self.times.extend(np.linspace(start, end, len(hands)))
        self.hands.extend(hands)

    def at(self, times: Floats) -> Floats:
        keys = np.stack(self.hands)
        columns = [np.interp(times, self.times, column) for column in keys.T]
        return np.stack(columns, axis=1)


def _add_left(track: _Track, sign: Sign, start: float, end: float, jitter: Floats) -> None:
    rest = REST.track()
    if sign.left is None:
        track.add(start, end, rest)
    elif sign.hidden:
        # The hand takes its shape behind the desk and loses it there: no frame shows it on the way.
        shaped = sign.left.track() + jitter * (np.arange(jitter.size) == 2)
        track.add(start, start, rest[:1])
        track.add(start + _SHAPING_SECONDS, end - _SHAPING_SECONDS, shaped)
        track.add(end, end, rest[:1])
    else:
        track.add(start, end, sign.left.track() + jitter)


def _jitter(rng: np.random.Generator) -> Floats:
    jitter = np.zeros(9)
    jitter[:2], jitter[2] = rng.normal(0, _PLACE_JITTER, 2), rng.normal(0, _ANGLE_JITTER)
    return jitter


def _faces(times: Floats, mode: Mode, mouth: Floats, phase: float) -> list[Face]:
    """Return the face at each time: the mode over the whole sentence, the mouth sign by sign."""
    if mode == "question":
        return [Face(brow=1.0, mouth_open=float(m), roll=9.0) for m in mouth]
    if mode == "negation":
        shake = np.sin(2 * np.pi * (times / 0.55 + phase))
        return [
            Face(brow=-1.0, mouth_open=0.25 * float(m), mouth_width=0.6, frown=1.0, yaw=float(yaw))
            for m, yaw in zip(mouth, shake, strict=True)
        ]
    return [Face(mouth_open=float(m)) for m in mouth]


def perform(
    glosses: Sequence[str],
    mode: Mode,
    fps: float,
    rng: np.random.Generator,
    language: SignLanguage = "first",
) -> list[Posture]:
    """Return the postures of a signed sentence, one a frame at ``fps``, about 4 to 6 a sign.

    The number of draws from ``rng`` depends on the number of signs alone, so two sentences that
    differ in one word are performed alike everywhere else.
    """
    pace, phase = rng.uniform(0.88, 1.06), rng.uniform()
    right, left = _Track([0.0], [REST.track()[0]]), _Track([0.0], [REST.track()[0]])
    mouth_times, mouths, cards, now = [0.0], [0.0], [], _REST_SECONDS * pace
    for sign in (SIGNS_OF[language][gloss] for gloss in glosses):
        start = now + _TRAVEL_SECONDS * pace
        now = start + pace * (_HIDDEN_SECONDS if sign.hidden else _HOLD_SECONDS)
        right.add(start, now, sign.right.track() + _jitter(rng))
        _add_left(left, sign, start, now, _jitter(rng))
        mouth_times += [start, now]
        mouths += [sign.mouth_open] * 2
        cards.append((start - _TRAVEL_SECONDS / 2, now + _TRAVEL_SECONDS / 2, sign.card))
    end = now + (_TRAVEL_SECONDS + _REST_SECONDS) * pace
    for track in (right, left):
        track.add(end, end, REST.track()[:1])
    times = np.arange(0.0, end, 1.0 / fps)
    faces = _faces(times, mode, np.interp(times, [*mouth_times, end], [*mouths, 0.0]), phase)
    held = [next((c for a, b, c in cards if a <= t <= b), None) for t in times]
    rows = zip(right.at(times), left.at(times), faces, held, strict=True)
    return [Posture(*row) for row in rows]
