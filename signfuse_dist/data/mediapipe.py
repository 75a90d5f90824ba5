"""MediaPipe as the extractor of joints: the models inside its wheel, or a file of the user's."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.joints import (
    FrameTracker,
    PoseError,
    PoseExtractor,
    joints_of,
)


class MediaPipeHolistic(FrameTracker):
    """MediaPipe 0.10's ``mp.solutions.holistic`` with the models inside its wheel."""

    name = "mediapipe-holistic"

    def __init__(self, visibility: float = 0.0) -> None:
        self.version = _with_visibility(metadata.version("mediapipe"), visibility)
        self._visibility = visibility
        self._graph: Any = None

    def restart(self, after_failure: bool) -> None:
        """Reset the graph; after a failure it cannot be trusted to end, and is made anew."""
        with _known_lines_dropped():
            if self._graph is None or after_failure:
                holistic = _on_one_thread(import_mediapipe().solutions.holistic.Holistic)
                self._graph = holistic(static_image_mode=False, model_complexity=1)
            else:
                self._graph.reset()

    def find(self, picture: NDArray[np.uint8], number: int) -> NDArray[np.float64]:
        """Show the graph a frame."""
        with _known_lines_dropped(number == 0):
            detected = self._graph.process(picture)
        groups = (
            detected.left_hand_landmarks,
            detected.right_hand_landmarks,
            detected.pose_landmarks,
            detected.face_landmarks,
        )
        left, right, body, face = (group.landmark if group else None for group in groups)
        return joints_of(left, right, body, face, self._visibility)


def _on_one_thread(holistic: Any) -> Any:
    """Return the solution with a graph that runs on one thread, as the decoder and scaler do.

    Packing is parallel over clips. With a thread a core, a worker takes a third of another's core,
    and two of them on two cores are half as fast again as one. The landmarks are the same.
    """

    class OnOneThread(holistic):  # type: ignore[misc]
        def _initialize_graph_interface(self, *arguments: Any, **options: Any) -> Any:
            graph = super()._initialize_graph_interface(*arguments, **options)
            del graph.executor[:]
            graph.num_threads = 1
            return graph

    return OnOneThread


class MediaPipeTasks(FrameTracker):
    """MediaPipe's Tasks API with a ``holistic_landmarker.task`` file that the user has."""

    name = "mediapipe-tasks"

    def __init__(self, model: Path, visibility: float = 0.0) -> None:
        if not model.is_file():
            raise PoseError(f"pose model {model}: no such file; name a holistic_landmarker.task")
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        version = f"{metadata.version('mediapipe')}+{digest[:12]}"
        self.version = _with_visibility(version, visibility)
        self._model, self._visibility = model, visibility
        self._landmarker: Any = None
        with _known_lines_dropped(), self._made():  # a wrong file is found before any clip is
            pass

    def restart(self, after_failure: bool) -> None:
        """Make a landmarker, which has seen no other clip."""
        with _known_lines_dropped():
            if self._landmarker is not None and not after_failure:
                self._landmarker.close()
            self._landmarker = self._made()

    def _made(self) -> Any:
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

    def find(self, picture: NDArray[np.uint8], number: int) -> NDArray[np.float64]:
        """Show the landmarker a frame."""
        mp = import_mediapipe()
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=picture)
        # Stamps must grow even where a resampled clip holds one picture twice, so they count
        # frames, in the steps that the built-in graph uses too.
        with _known_lines_dropped(number == 0):
            detected = self._landmarker.detect_for_video(image, number * 1000 // 30)
        return joints_of(
            detected.left_hand_landmarks,
            detected.right_hand_landmarks,
            detected.pose_landmarks,
            detected.face_landmarks,
            self._visibility,
        )


_VISIBILITY = "+visibility"


def _with_visibility(version: str, visibility: float) -> str:
    """Return the version of an extractor that leaves out what is seen less surely.

    It is part of the version, since joints with it and without are those of two extractors: shards,
    pose sets and models keep it with that.
    """
    written = np.format_float_positional(visibility, trim="0")
    return f"{version}{_VISIBILITY}{written}" if visibility else version


def visibility_of(version: str) -> float:
    """Return the visibility that an extractor of this ``version`` asks for; 0: none.

    Raises :class:`PoseError` for one that no extractor has.
    """
    _, asked, written = version.partition(_VISIBILITY)
    if not asked:
        return 0.0
    if not re.fullmatch(r"0\.[0-9]+|1\.0", written):
        raise PoseError(f"extractor version {version!r}: {written!r} is no visibility from 0 to 1")
    return float(written)


def import_mediapipe() -> Any:
    """Import mediapipe quietly. Raises :class:`PoseError` that says what to install."""
    try:
        with _known_lines_dropped():
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


def choose_extractor(model: Path | None = None, visibility: float = 0.0) -> PoseExtractor:
    """Return MediaPipe's extractor: the Tasks API from version 1 on, else the built-in models.

    A landmark of the body that is seen less surely than ``visibility`` (0 to 1) is missing.

    Raises :class:`PoseError` when mediapipe is missing, when it has no models inside and no
    ``model`` is given, when it has some and a ``model`` is given, and for a ``visibility`` that
    cannot be.
    """
    if not 0 <= visibility <= 1:
        raise PoseError(f"visibility {visibility}: must lie between 0 and 1")
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
    if model is None:
        return MediaPipeHolistic(visibility)
    return MediaPipeTasks(model, visibility)


# What MediaPipe's C++ writes whenever it works, before its logging can be set: which delegate
# computes, on what, and two notes about its own graph that nobody outside can act on.
_KNOWN = re.compile(
    rb"INFO: Created TensorFlow Lite XNNPACK delegate|"
    rb"WARNING: All log messages before absl::InitializeLog|"
    rb"I\d{4} |"  # of no consequence, by its own word
    rb"W\d{4} .*(inference_feedback_manager|landmark_projection_calculator)\.cc"
)


@contextmanager
def _known_lines_dropped(wanted: bool = True) -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and write at the end what is not known.

    Python's exceptions are not affected, and with ``wanted`` False nothing is done.
    """
    if not wanted:
        yield
        return
    sys.stderr.flush()
    with open(os.memfd_create("stderr"), "w+b") as held:
        kept = os.dup(2)
        try:
            os.dup2(held.fileno(), 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _KNOWN.match(line):
                    os.write(2, line)
