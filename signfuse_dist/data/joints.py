"""Joints of a clip: what an extractor is, and those that come with a corpus or not at all.

Paper: "75 keypoints extracted by MediaPipe", without saying what becomes of a lost hand.
Here: a landmark that is not found is 0 with its mask False, and nothing is filled in. Landmarks of
the body with a low visibility are kept, also those outside the picture, unless a threshold is asked
for.
Because: whether to interpolate is the model's choice, and which of the two serves better was not
measured: a hidden wrist that MediaPipe places by the arm is a guess.
"""

from __future__ import annotations

import math
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, Protocol
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.lib.format import (
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from signfuse_dist.data.manifest import NO_EXTRACTOR
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.errors import UserError
from signfuse_dist.files import special_kind
from signfuse_dist.skeleton import (
    BODY,
    FACE_MESH,
    JOINT_LAYOUT,
    LEFT_HAND,
    NUM_JOINTS,
    RIGHT_HAND,
)
from signfuse_dist.system_errors import machine_fault


@dataclass(frozen=True)
class Joints:
    """The joints of one clip."""

    pose: NDArray[np.float32]
    """float32 ``[frames, 75, 2]`` in units of the square frame, 0 where the mask is False."""
    mask: NDArray[np.bool_]
    """bool ``[frames, 75]``, True where the landmark was found."""
    failed_frames: int = 0
    """Frames at which the extractor failed: all their joints are masked."""
    failure: str = ""
    """What it said at the first of them."""


@dataclass(frozen=True)
class PoseTrack:
    """The joints of one film as a file gives them."""

    name: str
    """Of the file, for errors."""
    points: NDArray[np.float64]
    """float64 ``[frames, 75, 2]``, NaN where a joint is missing: in units of the upright picture
    (0 to 1), or in pixels of it where ``in_pixels``."""
    layout: str
    """Which points the file has, in words: goes into the clip's record."""
    fps: float | None = None
    """Rows a second; None: the file does not say."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the picture that the points are in; None: not said."""
    in_pixels: bool = False

    def shares(self, width: int, height: int) -> NDArray[np.float64]:
        """Return the points in units of a picture of this size, in pixels."""
        if not self.in_pixels:
            return self.points
        return self.points / np.array(self.size or (width, height), dtype=np.float64)


class PoseError(UserError):
    """Joints cannot be had: MediaPipe or its model is missing, or a file of joints is wrong."""


class PoseExtractor(ABC):
    """Finds the 75 joints of :mod:`signfuse_dist.skeleton` in the frames of one clip.

    An extractor is handed to worker processes, so it must be picklable until its first clip.
    """

    name: str
    version: str
    seconds: float = 0.0
    """Time spent inside the extractor's own model so far, its starts included."""

    @abstractmethod
    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the joints of a clip, reading ``frames`` once and keeping none of them."""


class FrameTracker(PoseExtractor):
    """An extractor that is shown one frame after the other, and may fail at any of them.

    A frame at which it raises is masked and counted, and the tracker starts anew with the next:
    what it remembers may be what broke it. Should it fail at every frame, the clip is one without
    a person, and says why. An error before the first frame is raised: nothing was looked at.
    """

    _failed = False  # at the frame before, which may be the last of another clip

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Track one clip; the tracker's memory of the clip before it is wiped first."""
        rows: list[NDArray[np.float32]] = []
        failures: list[str] = []
        began = time.perf_counter()
        self.restart(self._failed)
        self._failed = False
        self.seconds += time.perf_counter() - began
        for number, frame in enumerate(frames):
            picture = np.ascontiguousarray(frame.full())
            began = time.perf_counter()
            try:
                if self._failed:
                    self.restart(after_failure=True)
                landmarks = self.find(picture, number)
                self._failed = False
            except Exception as error:  # a native library raises types of its own
                if machine_fault(error):
                    raise
                failures.append(f"{type(error).__name__} {error}".strip().split("\n")[0])
                landmarks = np.full((NUM_JOINTS, 2), math.nan)
                self._failed = True
            self.seconds += time.perf_counter() - began
            rows.append(frame.to_square(landmarks))
        return Joints(*stacked(rows), len(failures), failures[0] if failures else "")

    @abstractmethod
    def restart(self, after_failure: bool) -> None:
        """Forget all frames so far. After a failure, nothing of the old tracker is used again."""

    @abstractmethod
    def find(self, picture: NDArray[np.uint8], number: int) -> NDArray[np.float64]:
        """Return the joints in a frame as :func:`joints_of` arranges them.

        ``picture`` is RGB uint8 ``[height, width, 3]``, ``number`` the frame's place in the clip.
        """


class _Landmark(Protocol):
    x: float
    y: float
    visibility: float
    """Of the body alone: how surely MediaPipe sees it, 0 to 1; elsewhere it means nothing."""


_Group = Sequence[_Landmark] | None
_FACE_ROWS = list(FACE_MESH.values())


def joints_of(
    left: _Group, right: _Group, body: _Group, face: _Group, visibility: float = 0.0
) -> NDArray[np.float64]:
    """Arrange MediaPipe's landmark groups as ``[75, 2]`` in units of the picture, NaN if missing.

    A group is None when MediaPipe did not find it. A landmark of the body that is seen less surely
    than ``visibility`` is missing, too.
    """
    hands = [_points(left, range(len(LEFT_HAND))), _points(right, range(len(RIGHT_HAND)))]
    seen = _points(body, range(len(BODY)))
    if visibility and body:
        seen[[body[row].visibility < visibility for row in range(len(BODY))]] = math.nan
    return np.concatenate([*hands, seen, _points(face, _FACE_ROWS)])


def _points(group: _Group, rows: Sequence[int]) -> NDArray[np.float64]:
    if not group:
        return np.full((len(rows), 2), math.nan)
    return np.array([(group[row].x, group[row].y) for row in rows], dtype=np.float64)


def stacked(rows: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stack joints ``[75, 2]`` in units of the square; what is not finite becomes 0, mask False."""
    pose = np.stack(rows) if rows else np.zeros((0, NUM_JOINTS, 2), dtype=np.float32)
    mask = np.isfinite(pose).all(axis=-1)
    return np.where(mask[..., None], pose, np.float32(0)), mask


UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    BadZipFile,
    zlib.error,
    TokenError,  # numpy cuts the header of an array into Python's tokens
)
"""What a damaged file of numpy arrays raises."""
MOST_FRAMES = 1_000_000
_FAR, _MOST_FAR = 8.0, 0.1  # squares from the middle, and the share of points that may be farther
"""Of a file of joints: nine hours at 30 a second, 1.3 GB at most when unpacked."""
PLAINLY_PACKED = (ZIP_STORED, ZIP_DEFLATED)  # as numpy does; others unpack more than is asked for


class JointsFile(PoseExtractor):
    """Joints that come with a clip, in an ``.npz`` beside it.

    ``pose`` ``[source frames, 75, 2]`` in units of the letterboxed square and ``mask``
    ``[source frames, 75]``: one row for each frame of the file at its own rate, at most
    :data:`MOST_FRAMES`. Headers are read before there is memory for what they promise. Where the
    clip is cropped, joints are moved into the square that is cut out.
    """

    name = "synthetic"
    version = "1"

    def __init__(self, path: Path) -> None:
        self._path = path

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the rows of the frames that were chosen; their pictures are not looked at."""
        pose, mask = self.read()
        chosen, placed = [], []
        for frame in frames:
            chosen.append(frame.index)
            placed.append((frame.letterboxed, frame.placement))
        if chosen and max(chosen) >= len(pose):
            raise PoseError(
                f"bad joints: {self._path.name} has {len(pose)} frames, the clip at least "
                f"{max(chosen) + 1}"
            )
        masked = np.where(mask[chosen][..., None], pose[chosen].astype(np.float32), np.nan)
        rows = [
            row if whole == square else square.to_square(whole.to_picture(row))
            for row, (whole, square) in zip(masked.astype(np.float32), placed, strict=True)
        ]
        return Joints(*stacked(rows))

    def track(self, side: int) -> PoseTrack:
        """Return the whole file, as the film of a clip whose picture is a square of ``side``."""
        pose, mask = self.read()
        points = np.where(mask[..., None], pose.astype(np.float64), math.nan)
        return PoseTrack(self._path.name, points, JOINT_LAYOUT, size=(side, side))

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return ``pose`` and ``mask`` as the file has them; raise :class:`PoseError`."""
        name = self._path.name
        kind = special_kind(self._path)
        if kind:
            raise PoseError(f"bad joints: {name} is {kind} and no file; it is not opened")
        try:
            with ZipFile(self._path) as file:
                lacks = [m for m in ("pose", "mask") if f"{m}.npy" not in file.namelist()]
                if lacks:
                    raise PoseError(
                        f"bad joints: {name} holds no {' and no '.join(lacks)}, as this package's "
                        "own form does; of another form, say which with --poses"
                    )
                shapes = [npz_header(file, member) for member in ("pose.npy", "mask.npy")]
                self._check(*shapes)
                pose, mask = (npz_array(file, member) for member in ("pose.npy", "mask.npy"))
        except PoseError:
            raise
        except FileNotFoundError as error:
            raise PoseError(f"bad joints: {name} cannot be read (it is not there)") from error
        except UNREADABLE as error:
            raise PoseError(
                f"bad joints: {name} cannot be read ({type(error).__name__})"
            ) from error
        self._refuse_pixels(pose[mask])
        return pose, mask

    def _refuse_pixels(self, found: NDArray[Any]) -> None:
        """Refuse positions in no units of the square, such as a tracker's pixels."""
        finite = found[np.isfinite(found).all(axis=-1)]
        far = (abs(finite.astype(np.float64) - 0.5) > _FAR).any(axis=-1)
        if far.sum() > _MOST_FAR * len(far):
            raise PoseError(
                f"bad joints: {far.mean():.0%} of the points of {self._path.name} lie farther than "
                f"{_FAR:g} squares from the picture's middle; are they in pixels?"
            )

    def _check(self, pose: NpzHeader, mask: NpzHeader) -> None:
        """Refuse arrays by their headers, which are all that was read of them."""
        name = self._path.name
        count = pose.shape[0] if pose.shape else 0
        if pose.shape != (count, NUM_JOINTS, 2) or mask.shape != pose.shape[:2]:
            raise PoseError(
                f"bad joints: {name}, pose {list(pose.shape)} and mask {list(mask.shape)}, "
                f"expected [frames, {NUM_JOINTS}, 2] and [frames, {NUM_JOINTS}]"
            )
        if count > MOST_FRAMES:
            raise PoseError(f"bad joints: {name} has {count} frames, more than {MOST_FRAMES}")
        if not np.issubdtype(pose.dtype, np.floating) or mask.dtype != np.bool_:
            raise PoseError(f"bad joints: {name}, pose must be floating and mask boolean")
        for what, header in (("pose", pose), ("mask", mask)):
            size = math.prod(header.shape) * header.dtype.itemsize
            if header.packing not in PLAINLY_PACKED or header.size != size:
                raise PoseError(
                    f"bad joints: {name}, {what} unpacks to {header.size} bytes and not to the "
                    f"{size} of its shape"
                )


class NpzHeader(NamedTuple):
    """What a member of an ``.npz`` says of itself; ``size`` in bytes, its header left out."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    packing: int


def npz_header(file: ZipFile, member: str) -> NpzHeader:
    info = file.getinfo(member)
    with file.open(info) as content:
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(content)]
        shape, _, dtype = read(content)
        return NpzHeader(shape, dtype, info.file_size - content.tell(), info.compress_type)


def npz_array(file: ZipFile, member: str) -> NDArray[Any]:
    with file.open(member) as content:
        return np.asarray(read_array(content, allow_pickle=False))


class NoJoints(PoseExtractor):
    """Stands where no joints are wanted, or not yet: all are masked, and nobody has looked."""

    name = NO_EXTRACTOR
    version = "1"

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return masked joints for as many frames as there are."""
        count = sum(1 for _ in frames)
        pose = np.zeros((count, NUM_JOINTS, 2), dtype=np.float32)
        return Joints(pose, np.zeros((count, NUM_JOINTS), dtype=np.bool_))
