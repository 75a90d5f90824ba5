"""COCO-WholeBody, 133 points: what RTMPose, DWPose and HRNet find, as ``.npz``, ``.npy``, ``.pkl``.

17 points of the body, 6 of the feet, 68 of the face as iBUG numbers them, 21 of each hand in
MediaPipe's order. ``keypoints`` is ``[frames, 133, 2]`` (with one person's axis more or less, or a
list of frames) and ``scores``, ``keypoint_scores`` or ``confidence`` ``[frames, 133]``; a lone
array is ``[frames, 133, 3]`` with the score last. ``width``, ``height`` and ``fps`` may be there.
Positions are in pixels, or, where all of them lie between -1 and 2, shares of the picture, as
Uni-Sign publishes them. Left and right are the signer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.joints import MOST_FRAMES, PoseError, PoseTrack
from signfuse_dist.data.openpose import HAND_LEFT, HAND_RIGHT, IBUG_68
from signfuse_dist.data.pose_arrays import read_arrays
from signfuse_dist.data.tracks import confident
from signfuse_dist.skeleton import JOINT_INDEX, NUM_JOINTS

NUM_POINTS = 133
_BODY = {
    "nose": 0, "left_eye": 1, "right_eye": 2, "left_ear": 3, "right_ear": 4,
    "left_shoulder": 5, "right_shoulder": 6, "left_elbow": 7, "right_elbow": 8,
    "left_wrist": 9, "right_wrist": 10,
}  # fmt: skip
_FACE_AT, _LEFT_AT, _RIGHT_AT = 23, 91, 112
WHOLEBODY_133: Mapping[str, int] = {
    **_BODY,
    **{joint: point + _FACE_AT for joint, point in IBUG_68.items()},
    **{joint: point + _LEFT_AT for joint, point in HAND_LEFT.items()},
    **{joint: point + _RIGHT_AT for joint, point in HAND_RIGHT.items()},
}
"""Joint -> point of COCO-WholeBody."""
_SCORES = ("scores", "keypoint_scores", "confidence")
_ABOVE_ONE = 10.0
"""RTMPose's scores are the heights of its maps and go above 1; far above, they are none."""


def read_wholebody(path: Path, threshold: float) -> PoseTrack:
    """Read a file of one clip; of several people the one with the most score counts.

    Raises :class:`PoseError` for a file that cannot be read, or holds no 133 points a frame.
    """
    held = read_arrays(path)
    points, scores = _points_and_scores(path, held)
    if not len(points) or len(points) > MOST_FRAMES:
        raise PoseError(f"bad poses: {path.name} has {len(points)} frames, not 1 to {MOST_FRAMES}")
    found = np.isfinite(points).all(axis=-1) & (scores > 0)
    if found.any() and scores[found].max() > _ABOVE_ONE:
        raise PoseError(
            f"bad poses: {path.name} has scores up to {scores[found].max():.4g}; are they "
            "something else?"
        )
    rows = list(WHOLEBODY_133.values())
    made = np.full((len(points), NUM_JOINTS, 2), np.nan)
    made[:, [JOINT_INDEX[joint] for joint in WHOLEBODY_133]] = confident(
        points[:, rows], scores[:, rows], threshold
    )
    seen = points[found]
    in_pixels = bool(len(seen)) and bool((seen < -1).any() or (seen > 2).any())
    size = size_of(path, held)
    if in_pixels and size is not None:
        made, in_pixels = made / np.array(size), False
    layout = f"COCO-WholeBody {NUM_POINTS}"
    return PoseTrack(path.name, made, layout, number(path, held, "fps"), size, in_pixels)


def _points_and_scores(
    path: Path, held: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if "keypoints" in held:
        named = [name for name in _SCORES if name in held]
        if not named:
            raise PoseError(f"bad poses: {path.name} has keypoints and no {' or '.join(_SCORES)}")
        points, scores = _array(path, held["keypoints"]), _array(path, held[named[0]])
        scores = scores[..., 0] if scores.shape[-1:] == (1,) else scores
        if points.shape[:-1] != scores.shape:
            raise PoseError(
                f"bad poses: {path.name} has keypoints {list(points.shape)} and {named[0]} "
                f"{list(scores.shape)}"
            )
    else:
        lone = _array(path, next(iter(held.values()), []))
        if not lone.ndim or lone.shape[-1] != 3:
            raise PoseError(
                f"bad poses: {path.name} has {', '.join(held) or 'nothing'} and no keypoints with "
                f"scores; a lone array is [frames, {NUM_POINTS}, 3], not {list(lone.shape)}"
            )
        points, scores = lone[..., :2], lone[..., 2]
    if points.ndim < 3 or points.shape[-2] != NUM_POINTS or points.shape[-1] < 2:
        raise PoseError(
            f"bad poses: {path.name} has keypoints {list(points.shape)}, not "
            f"[frames, {NUM_POINTS}, 2]"
        )
    if points.ndim == 4 and points.shape[1]:
        person = int(np.nan_to_num(scores).sum(axis=(0, 2)).argmax())
        points, scores = points[:, person], scores[:, person]
    if points.ndim != 3:
        raise PoseError(f"bad poses: {path.name} has keypoints {list(points.shape)}")
    return points[..., :2], scores


def _array(path: Path, value: object) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise PoseError(
            f"bad poses: {path.name} has frames of different shapes, such as of other numbers of "
            "people, or no numbers"
        ) from error


def number(path: Path, held: Mapping[str, Any], name: str) -> float | None:
    """Return a positive number of a file, None where it has none of this name."""
    if name not in held:
        return None
    value = _array(path, held[name])
    if value.size != 1 or not np.isfinite(value).all() or value.item() <= 0:
        raise PoseError(f"bad poses: {path.name}, {name} is no number above 0")
    return float(value.item())


def size_of(path: Path, held: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return width and height of the picture in pixels, None where a file does not say them."""
    width, height = (number(path, held, name) for name in ("width", "height"))
    return None if width is None or height is None else (max(1, int(width)), max(1, int(height)))
