"""Pictures of what the model sees: frames with their joints, for reports and for the eye."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from signfuse_dist.skeleton import BODY, BONES, FACE, JOINT_INDEX, JOINTS, LEFT_HAND, RIGHT_HAND

COLOURS = {
    **dict.fromkeys(LEFT_HAND, (255, 170, 0)),
    **dict.fromkeys(RIGHT_HAND, (0, 200, 255)),
    **dict.fromkeys(BODY, (120, 255, 120)),
    **dict.fromkeys(FACE, (255, 90, 200)),
}
"""RGB by joint: orange left hand, blue right hand, green body, pink face."""
_BONE_ROWS = [(JOINT_INDEX[a], JOINT_INDEX[b], COLOURS[b]) for a, b in BONES]
_MARGIN = 4  # pixels between the pictures of a sheet


def draw_skeleton(
    frame: NDArray[np.uint8], pose: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return a copy of ``frame`` with its skeleton drawn on it.

    ``frame`` uint8 ``[height, width, 3]``; ``pose`` ``[75, 2]`` in units of the frame; ``mask``
    bool ``[75]``: joints and bones that are masked are left out.
    """
    image = Image.fromarray(frame)
    canvas = ImageDraw.Draw(image)
    height, width = frame.shape[:2]
    points = [(float(x) * width, float(y) * height) for x, y in pose]
    thickness = max(1, round(max(height, width) / 160))
    for a, b, colour in _BONE_ROWS:
        if mask[a] and mask[b]:
            canvas.line([points[a], points[b]], fill=colour, width=thickness)
    for row, name in enumerate(JOINTS):
        if mask[row]:
            x, y = points[row]
            box = (x - thickness, y - thickness, x + thickness, y + thickness)
            canvas.ellipse(box, fill=COLOURS[name])
    return np.asarray(image)


def contact_sheet(
    frames: NDArray[np.uint8],
    poses: NDArray[np.float32],
    masks: NDArray[np.bool_],
    columns: int,
) -> Image.Image:
    """Return the frames with their skeletons in a grid of ``columns``, in reading order.

    ``frames`` uint8 ``[n, height, width, 3]``, ``poses`` ``[n, 75, 2]``, ``masks`` ``[n, 75]``.
    Raises ValueError when there is no frame or no column.
    """
    if not len(frames) or columns < 1:
        raise ValueError(f"{len(frames)} frames in {columns} columns make no sheet")
    drawn: Sequence[NDArray[np.uint8]] = [
        draw_skeleton(*one) for one in zip(frames, poses, masks, strict=True)
    ]
    height, width = frames.shape[1] + _MARGIN, frames.shape[2] + _MARGIN
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    for i, picture in enumerate(drawn):
        row, column = divmod(i, columns)
        place = (column * width + _MARGIN, row * height + _MARGIN)
        sheet.paste(Image.fromarray(picture), place)
    return sheet
