"""Joints of a clip: MediaPipe Holistic, or the joints that come with a corpus.

Paper: "75 keypoints extracted by MediaPipe", without saying what becomes of a lost hand.
Here: a landmark that is not found is 0 with its mask False, and nothing is filled in. Landmarks of
the body with a low visibility are kept, also those outside the picture.
Because: whether to interpolate is the model's choice, and a hidden wrist that MediaPipe places by
the arm is still a better guess than none.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.frames import VideoFrame
from signfuse_dist.data.quiet import silenced_stderr
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import BODY, FACE_MESH, LEFT_HAND, NUM_JOINTS, RIGHT_HAND

Joints = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Pose float32 ``[frames, 75, 2]`` in units of the square frame, mask bool ``[frames, 75]``."""


class PoseError(UserError):
    """Joints cannot be had: MediaPipe or its model is missing, or a file of joints is wrong."""


class PoseExtractor(ABC):
    """Finds the 75 joints of :mod:`signfuse_dist.skeleton` in the frames of one clip.

    An extractor is handed to worker processes, so it must be picklable until its first clip.
    """

    name: str
    version: str
    seconds: float = 0.0
    """Time spent inside the extractor's own model so far."""

    @abstractmethod
    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the joints of a clip, reading ``frames`` once and keeping none of them."""


class _Landmark(Protocol):
    x: float
    y: float


_Group = Sequence[_Landmark] | None
_FACE_ROWS = list(FACE_MESH.values())


def joints_of(left: _Group, right: _Group, body: _Group, face: _Group) -> NDArray[np.float64]:
    """Arrange MediaPipe's landmark groups as ``[75, 2]`` in units of the picture, NaN if missing.

    A group is None when MediaPipe did not find it.
    """
    return np.concatenate(
        [
            _points(left, range(len(LEFT_HAND))),
            _points(right, range(len(RIGHT_HAND))),
            _points(body, range(len(BODY))),
            _points(face, _FACE_ROWS),
        ]
    )


def _points(group: _Group, rows: Sequence[int]) -> NDArray[np.float64]:
    if not group:
        return np.full((len(rows), 2), math.nan)
    return np.array([(group[row].x, group[row].y) for row in rows], dtype=np.float64)


def stacked(rows: list[NDArray[np.float32]]) -> Joints:
    """Stack joints ``[75, 2]`` in units of the square; what is not finite becomes 0, mask False."""
    pose = np.stack(rows) if rows else np.zeros((0, NUM_JOINTS, 2), dtype=np.float32)
    mask = np.isfinite(pose).all(axis=-1)
    return np.where(mask[..., None], pose, np.float32(0)), mask


class MediaPipeHolistic(PoseExtractor):
    """MediaPipe 0.10's ``mp.solutions.holistic`` with the models inside its wheel."""

    name = "mediapipe-holistic"

    def __init__(self) -> None:
        self.version = metadata.version("mediapipe")
        self._graph: Any = None

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Track one clip; the tracker's memory of the clip before it is wiped first."""
        self._restart()
        rows, first = [], True
        for frame in frames:
            rows.append(frame.placement.to_square(self._find(frame, announce=first)))
            first = False
        return stacked(rows)

    def _restart(self) -> None:
        with silenced_stderr():
            if self._graph is None:
                self._graph = import_mediapipe().solutions.holistic.Holistic(
                    static_image_mode=False, model_complexity=1
                )
            else:
                self._graph.reset()

    def _find(self, frame: VideoFrame, announce: bool) -> NDArray[np.float64]:
        picture = np.ascontiguousarray(frame.full())
        began = time.perf_counter()
        with silenced_stderr(announce):
            found = self._graph.process(picture)
        self.seconds += time.perf_counter() - began
        groups = (
            found.left_hand_landmarks,
            found.right_hand_landmarks,
            found.pose_landmarks,
            found.face_landmarks,
        )
        return joints_of(*(group.landmark if group else None for group in groups))


class MediaPipeTasks(PoseExtractor):
    """MediaPipe's Tasks API with a ``holistic_landmarker.task`` file that the user has."""

    name = "mediapipe-tasks"

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise PoseError(f"pose model {model}: no such file; name a holistic_landmarker.task")
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        self.version = f"{metadata.version('mediapipe')}+{digest[:12]}"
        self._model = model
        with silenced_stderr(), self._landmarker():  # a wrong file is found before any clip is
            pass

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Track one clip with a landmarker of its own, which has seen no other clip."""
        rows: list[NDArray[np.float32]] = []
        with silenced_stderr():
            landmarker = self._landmarker()
        with landmarker:
            for frame in frames:
                found = self._find(landmarker, frame, len(rows))
                rows.append(frame.placement.to_square(found))
        return stacked(rows)

    def _landmarker(self) -> Any:
        import_mediapipe()
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.HolisticLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self._model)),
            running_mode=vision.RunningMode.VIDEO,
        )
        try:
            return vision.HolisticLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise PoseError(
                f"pose model {self._model}: this mediapipe does not accept it ({error})"
            ) from error

    def _find(self, landmarker: Any, frame: VideoFrame, count: int) -> NDArray[np.float64]:
        mp = import_mediapipe()
        picture = np.ascontiguousarray(frame.full())
        began = time.perf_counter()
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=picture)
        # Stamps must grow even where a resampled clip holds one picture twice, so they count
        # frames, in the steps that the built-in graph uses too.
        with silenced_stderr(count == 0):
            found = landmarker.detect_for_video(image, count * 1000 // 30)
        self.seconds += time.perf_counter() - began
        return joints_of(
            found.left_hand_landmarks,
            found.right_hand_landmarks,
            found.pose_landmarks,
            found.face_landmarks,
        )


_UNREADABLE = (OSError, KeyError, ValueError, EOFError, TypeError, BadZipFile, zlib.error)


class JointsFile(PoseExtractor):
    """Joints that come with a clip, in an ``.npz`` beside it.

    ``pose`` ``[source frames, 75, 2]`` in units of the square frame and ``mask``
    ``[source frames, 75]``: one row for each frame of the file at its own rate.
    """

    name = "synthetic"
    version = "1"

    def __init__(self, path: Path) -> None:
        self._path = path

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the rows of the frames that were chosen; their pictures are not looked at."""
        pose, mask = self._read()
        chosen = [frame.index for frame in frames]
        if chosen and max(chosen) >= len(pose):
            raise PoseError(
                f"bad joints: {self._path.name} has {len(pose)} frames, the clip at least "
                f"{max(chosen) + 1}"
            )
        masked = np.where(mask[chosen][..., None], pose[chosen].astype(np.float32), np.nan)
        return stacked(list(masked.astype(np.float32)))

    def _read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        name = self._path.name
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                pose, mask = arrays["pose"], arrays["mask"]
        except _UNREADABLE as error:
            raise PoseError(
                f"bad joints: {name} cannot be read ({type(error).__name__})"
            ) from error
        if pose.shape != (len(pose), NUM_JOINTS, 2) or mask.shape != pose.shape[:2]:
            raise PoseError(
                f"bad joints: {name}, pose {list(pose.shape)} and mask {list(mask.shape)}, "
                f"expected [frames, {NUM_JOINTS}, 2] and [frames, {NUM_JOINTS}]"
            )
        if not np.issubdtype(pose.dtype, np.floating) or mask.dtype != np.bool_:
            raise PoseError(f"bad joints: {name}, pose must be floating and mask boolean")
        return pose, mask


def import_mediapipe() -> Any:
    """Import mediapipe quietly. Raises :class:`PoseError` that says what to install."""
    try:
        with silenced_stderr():
            import mediapipe
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error):
            raise PoseError(
                f"mediapipe's OpenCV cannot be loaded ({error}): run `apt-get install libgl1`, or "
                "put opencv-python-headless in the place of opencv-contrib-python"
            ) from error
        raise PoseError(
            f"mediapipe cannot be imported ({error}): install it with "
            "`pip install 'signfuse_dist[pose]'`"
        ) from error
    return mediapipe


def choose_extractor(model: Path | None = None) -> PoseExtractor:
    """Return MediaPipe's extractor: the Tasks API from version 1 on, else the built-in models.

    Raises :class:`PoseError` when mediapipe is missing, when it has no models inside and no
    ``model`` is given, and when it has some and a ``model`` is given.
    """
    built_in = hasattr(import_mediapipe(), "solutions")
    version = metadata.version("mediapipe")
    if model is not None and built_in:
        # Its Tasks API has a holistic landmarker too, but aborts where a hand or face is missing.
        raise PoseError(
            f"pose model {model}: mediapipe {version} uses the models inside it; leave the model "
            "out, or install mediapipe 1 or later"
        )
    if model is None and not built_in:
        raise PoseError(
            f"mediapipe {version} has no models inside: name a holistic_landmarker.task file, or "
            "install mediapipe 0.10.21"
        )
    return MediaPipeHolistic() if model is None else MediaPipeTasks(model)
