"""The tracks of RWTH-BOSTON-104: both hands and the nose of every frame of every clip, one table.

A hand's mark is the middle of the hand. It is taken for the root of the hand's joints, the wrist,
which lies half a palm away: there is no other joint of a whole hand. Left and right are the
signer's, as published.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.corpora import CorpusError
from signfuse_dist.corpora.boston104 import FPS, SIZE
from signfuse_dist.corpora.tables import Form, read_lines
from signfuse_dist.data.joints import PoseError, PoseTrack
from signfuse_dist.skeleton import JOINT_INDEX, NUM_JOINTS
from signfuse_dist.system_errors import refuse_machine

MARKS = {"left_hand_wrist": "left", "right_hand_wrist": "right", "nose": "nose"}
"""Joint -> column of the table, which has ``-x`` and ``-y`` of it."""
_COLUMNS = [f"{mark}-{axis}" for mark in MARKS.values() for axis in "xy"]
_MOST_FRAMES = 100_000  # of one clip: an hour


def read_boston104_track(path: Path, clip_id: str) -> PoseTrack:
    """Return the track of one clip; raise :class:`PoseError` where the table has none of it.

    A mark at the corner (0, 0) is one that was not set.
    """
    try:
        table = _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        refuse_machine(error, path)
        raise PoseError(f"bad poses: {path.name} cannot be read ({error.strerror})") from error
    except CorpusError as error:
        refuse_machine(error, path)
        raise PoseError(f"bad poses: {error}") from error
    if clip_id not in table:
        raise PoseError(f"no poses: {path.name} has no frame of {clip_id}")
    frames, marks = table[clip_id]
    if frames.min() < 0 or frames.max() >= _MOST_FRAMES or len(set(frames.tolist())) < len(frames):
        raise PoseError(f"bad poses: {path.name} numbers the frames of {clip_id} twice, or wildly")
    points = np.full((int(frames.max()) + 1, NUM_JOINTS, 2), np.nan)
    there = marks.reshape(len(frames), len(MARKS), 2)
    there = np.where((there != 0).any(axis=-1, keepdims=True), there, np.nan)
    points[frames[:, None], [[JOINT_INDEX[joint] for joint in MARKS]]] = there
    return PoseTrack(
        path.name, points, "hands and nose of RWTH-BOSTON-104", FPS, SIZE, in_pixels=True
    )


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return frames and marks ``[frames, 6]`` of each clip; ``changed`` is the file's time."""
    lines = read_lines(path, ("video", "frame", *_COLUMNS), form=Form((",",)))
    by_clip: dict[str, list[list[float]]] = {}
    for number, fields in lines.lines:
        if isinstance(fields, str):
            raise CorpusError(f"{path.name}: line {number}, {fields}")
        try:
            values = [float(fields[column]) for column in ("frame", *_COLUMNS)]
            if not np.isfinite(values).all() or values[0] != int(values[0]):
                raise ValueError
        except ValueError as error:
            raise CorpusError(f"{path.name}: line {number} holds no numbers") from error
        by_clip.setdefault(fields["video"], []).append(values)
    rows = {clip: np.array(values) for clip, values in by_clip.items()}
    return {clip: (r[:, 0].astype(np.int64), r[:, 1:]) for clip, r in rows.items()}
