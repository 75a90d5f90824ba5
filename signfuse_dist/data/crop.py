"""The square that is cut around a signer, for frames and joints alike.

A letterboxed clip of 16:9 leaves 44% of the square black, and the signer fills a part of the rest.
A crop is one square for a whole clip, so that the camera does not move: around the joints that
were found (:func:`signer_box`), or around a box that the corpus brings. It is kept as a
:class:`~signfuse_dist.corpora.Box`, in shares of the upright picture, and frames and joints go
through the same :class:`~signfuse_dist.data.picture.Placement`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.corpora import Box
from signfuse_dist.data.picture import Placement, square_at
from signfuse_dist.skeleton import LEFT_HAND, RIGHT_HAND

MARGIN = 0.15
"""Room on each side of the joints, as a share of their longer extent: the highest landmarks are the
brows, the outermost the finger tips, and both have some head or hand beyond them."""
OUTLIERS = 0.01
"""Share of the frames on each side, and at least one, in which a joint may lie outside the rest."""
NOT_CROPPED = "no_crop"
"""Flag of a clip whose picture is whole, because there was nothing to crop it by."""
_HANDS = slice(0, len(LEFT_HAND) + len(RIGHT_HAND))


def signer_box(
    points: NDArray[np.float64], mask: NDArray[np.bool_], width: int, height: int
) -> Box | None:
    """Return the square around a signer's head, shoulders, arms and hands over a whole clip.

    Each joint spans the range in which it was found inside the picture, but for the
    :data:`OUTLIERS` at both ends, so that one frame in which the tracker took a lamp for a hand
    does not count; a joint that was found in one frame of several does not count at all. The square
    is as large as the longer side of all spans with :data:`MARGIN` on each side, and has their
    centre. It consists of whole pixels of the picture and may reach out of it. The layout of the
    joints has neither hips nor legs.

    Args:
        points: float64 ``[frames, 75, 2]`` in units of the picture.
        mask: bool ``[frames, 75]``, True where the joint was found.
        width: of the upright picture with square pixels, as ``height``.

    Returns:
        None where no joint was found, or all at one point.
    """
    inside = mask & ((points >= 0) & (points <= 1)).all(axis=-1)
    counted = inside.sum(axis=0) >= min(2, len(mask))
    if not counted.any():
        return None
    # What is not there comes last. numpy's nanquantile would take longer than decoding the clip.
    seen = np.sort(np.where(inside[..., None], points, math.nan)[:, counted], axis=0)
    last = (inside.sum(axis=0)[counted] - 1)[None, :, None]
    left_out = np.ceil(OUTLIERS * last).astype(np.int64)
    ends = (
        np.take_along_axis(seen, left_out, axis=0)[0],
        np.take_along_axis(seen, last - left_out, axis=0)[0],
    )
    scale = np.array([width, height], dtype=np.float64)
    low = np.minimum(*ends).min(axis=0) * scale  # of two values the higher one comes first
    high = np.maximum(*ends).max(axis=0) * scale
    extent = float((high - low).max())
    if extent < 1:
        return None
    x, y = ((low + high) / 2).tolist()
    return square_at(x, y, math.ceil(extent * (1 + 2 * MARGIN)), width, height)


def moved(
    pose: NDArray[np.float32],
    mask: NDArray[np.bool_],
    pictures: Sequence[tuple[int, int]],
    size: int,
    box: Box,
) -> NDArray[np.float32]:
    """Return joints of the letterboxed square in units of the square that ``box`` fills.

    ``pose`` float32 ``[frames, 75, 2]`` and ``mask`` bool ``[frames, 75]``, where it is False the
    result is 0; ``pictures`` width and height of each frame's picture; ``size`` of the square.
    """
    there = np.zeros_like(pose)
    for picture in set(pictures):  # mostly one
        rows = [number for number, other in enumerate(pictures) if other == picture]
        shares = Placement.centred(*picture, size).to_picture(pose[rows])
        there[rows] = Placement.around(box, *picture, size).to_square(shares)
    return np.where(mask[..., None], there, np.float32(0))


def in_picture(pose: NDArray[np.float32], box: Box) -> NDArray[np.float64]:
    """Map points ``[..., 2]`` from units of the square that ``box`` fills to those of the picture.

    Right to half a pixel of the square, to which a picture is scaled.
    """
    return pose * [box.x1 - box.x0, box.y1 - box.y0] + [box.x0, box.y0]


def hands_cut(
    pose: NDArray[np.float32], mask: NDArray[np.bool_], box: Box
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which landmarks of hands the square cuts off, of which that are in the picture.

    A hand that the camera cut off is not counted.

    Args:
        pose: ``[frames, 75, 2]`` in units of the square that ``box`` fills.
        mask: bool ``[frames, 75]``.
        box: the square.

    Returns:
        Both bool ``[frames, 42]``: outside the square, and found inside the picture.
    """
    hands = pose[:, _HANDS]
    shares = in_picture(hands, box)
    filmed = mask[:, _HANDS] & ((shares >= 0) & (shares <= 1)).all(axis=-1)
    return filmed & ((hands < 0) | (hands > 1)).any(axis=-1), filmed


def is_box(recorded: object, flags: Sequence[str]) -> bool:
    """Say whether a record says how a clip was cropped: by a box, or flagged that it was not."""
    if recorded is None:
        return NOT_CROPPED in flags
    if not isinstance(recorded, list) or len(recorded) != len(Box._fields):
        return False
    if not all(type(edge) in (int, float) and math.isfinite(edge) for edge in recorded):
        return False
    x0, y0, x1, y1 = recorded
    return bool(x0 < x1 and y0 < y1)
