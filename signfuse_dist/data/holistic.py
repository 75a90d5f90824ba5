"""MediaPipe Holistic's 543 points as arrays or tables: face 468, left hand 21, pose 33, right 21.

``.npz`` and ``.npy`` hold one array ``[frames, 543, 2 or more]`` in that order, which is the one of
the tables that Google has published (Isolated and Fingerspelled Sign Language Recognition). Those
are ``.parquet``, either a row a point (``frame``, ``type``, ``landmark_index``, ``x``, ``y``) or a
row a frame (``x_face_0`` ... ``y_right_hand_20``). What is not finite is missing, and so is a whole
group of zeros. Positions are shares of the picture. Left and right are the signer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.joints import MOST_FRAMES, PoseError, PoseTrack
from signfuse_dist.data.pose_arrays import read_arrays
from signfuse_dist.data.wholebody import number, size_of
from signfuse_dist.files import special_kind
from signfuse_dist.skeleton import BODY, FACE_MESH, JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND
from signfuse_dist.system_errors import machine_error, machine_fault

GROUPS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "face": (468, FACE_MESH),
    "left_hand": (21, {name: i for i, name in enumerate(LEFT_HAND)}),
    "pose": (33, {name: i for i, name in enumerate(BODY)}),
    "right_hand": (21, {name: i for i, name in enumerate(RIGHT_HAND)}),
}
"""Group -> how many points it has, and which of them is which joint; in the order of an array."""
NUM_POINTS = sum(count for count, _ in GROUPS.values())
_MOST_BYTES = 1 << 30


def read_holistic(path: Path, threshold: float) -> PoseTrack:
    """Read a file of one clip; it has no confidence, so ``threshold`` is not looked at.

    Raises :class:`PoseError` for a file that cannot be read, or is of other points.
    """
    fps, size = None, None
    if path.suffix.lower() == ".parquet":
        groups = _of_table(path)
    else:
        held = read_arrays(path)
        fps, size = number(path, held, "fps"), size_of(path, held)
        groups = _of_array(path, held)
    frames = len(next(iter(groups.values())))
    if not 1 <= frames <= MOST_FRAMES:
        raise PoseError(f"bad poses: {path.name} has {frames} frames, not 1 to {MOST_FRAMES}")
    points = np.full((frames, NUM_JOINTS, 2), np.nan)
    for name, group in groups.items():
        missing = ~group.any(axis=(1, 2))  # as is written for a group that was not found
        there = np.where(missing[:, None, None], np.nan, group)
        joints = GROUPS[name][1]
        points[:, [JOINT_INDEX[joint] for joint in joints]] = there[:, list(joints.values())]
    return PoseTrack(path.name, points, f"MediaPipe Holistic {NUM_POINTS}", fps, size)


def _of_array(path: Path, held: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    arrays = {n: a for n, a in held.items() if n not in ("fps", "width", "height")}
    if len(arrays) != 1:
        raise PoseError(
            f"bad poses: {path.name} has {', '.join(arrays) or 'no array'}; one array of "
            f"[frames, {NUM_POINTS}, 2 or more] is read"
        )
    value = np.asarray(next(iter(arrays.values())))
    if value.ndim != 3 or value.shape[1] != NUM_POINTS or value.shape[2] < 2:
        raise PoseError(
            f"bad poses: {path.name} is {list(value.shape)}, not [frames, {NUM_POINTS}, 2 or more]"
        )
    ends = np.cumsum([count for count, _ in GROUPS.values()])[:-1]
    parts = np.split(value[..., :2].astype(np.float64), ends, axis=1)
    return dict(zip(GROUPS, parts, strict=True))


def _of_table(path: Path) -> dict[str, NDArray[np.float64]]:
    table = _parquet(path)
    names = set(table.column_names)
    if {"frame", "type", "landmark_index", "x", "y"} <= names:
        return _of_points(path, table)
    wide = {f"{axis}_{g}_{i}" for g, (count, _) in GROUPS.items() for i in range(count)
            for axis in "xy"}  # fmt: skip
    if wide <= names:
        return {
            group: np.stack(
                [
                    np.stack([_column(table, f"{axis}_{group}_{i}") for axis in "xy"], axis=-1)
                    for i in range(count)
                ],
                axis=1,
            )
            for group, (count, _) in GROUPS.items()
        }
    raise PoseError(
        f"bad poses: {path.name} has neither the columns frame, type, landmark_index, x and y nor "
        f"x_face_0 to y_right_hand_20; it has {len(names)} others"
    )


def _of_points(path: Path, table: Any) -> dict[str, NDArray[np.float64]]:
    frames = _column(table, "frame")
    places, kinds = _column(table, "landmark_index"), table.column("type").to_pylist()
    whole = np.isfinite(frames) & np.isfinite(places)
    if not whole.all() or not len(frames) or frames.max() - frames.min() >= MOST_FRAMES:
        raise PoseError(f"bad poses: {path.name} has rows without a frame, none, or too many")
    first = frames.min()
    number_of = (frames - first).astype(np.int64)
    values = np.stack([_column(table, "x"), _column(table, "y")], axis=-1)
    groups = {
        group: np.full((int(number_of.max()) + 1, count, 2), np.nan)
        for group, (count, _) in GROUPS.items()
    }
    for group, (count, _) in GROUPS.items():
        rows = np.array([kind == group for kind in kinds])
        at = places[rows].astype(np.int64)
        if ((at < 0) | (at >= count)).any():
            raise PoseError(f"bad poses: {path.name} has a point of {group} beyond {count}")
        groups[group][number_of[rows], at] = values[rows]
    return groups


def _column(table: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise PoseError(f"bad poses: column {name} holds no numbers") from error


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise PoseError(
            ".parquet is read by the package pyarrow; pip install 'signfuse_dist[poses]'"
        ) from error
    if special_kind(path):
        raise PoseError(
            f"bad poses: {path.name} is {special_kind(path)} and no file; it is not opened"
        )
    try:
        file = parquet.ParquetFile(path)
        stored = file.metadata
        size = sum(stored.row_group(i).total_byte_size for i in range(stored.num_row_groups))
        if max(size, stored.num_rows * stored.num_columns) > _MOST_BYTES:
            raise PoseError(f"bad poses: {path.name} unpacks to more than {_MOST_BYTES} bytes")
        return file.read()
    except PoseError:
        raise
    except (OSError, ValueError, ArrowException) as error:
        if isinstance(error, OSError) and machine_fault(error):
            raise machine_error(error, path) from error
        words = str(error).split("\n")[0][:120]
        raise PoseError(f"bad poses: {path.name} is no .parquet ({words})") from error
