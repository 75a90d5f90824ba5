"""One decoded picture of a clip, and where it lies in the stored square.

Coordinates: a picture of any size is scaled so that its longer side is ``size`` pixels, centred in
a black square of ``size`` x ``size``. Frames and joints share that square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.clock import VideoError

FULL_SIDE = 1280  # pixels: landmark models see at most 256 x 256 crops, so more only costs copies
MAX_PIXELS = 2**26
"""Pixels of a picture that is decoded: 8192 x 8192. A header can ask for any memory."""


def refuse_large(name: str, width: int, height: int) -> None:
    """Raise :class:`VideoError` for a picture of more than ``MAX_PIXELS``, before it is decoded."""
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"too large: the picture of {name} is {width} x {height}; at most {MAX_PIXELS:,} "
            "pixels are decoded"
        )


class Picture(Protocol):
    """One decoded picture, upright, with square pixels."""

    width: int
    height: int

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """Return the picture scaled to uint8 ``[height, width, 3]``."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where a picture lies inside its square, in pixels of the square."""

    left: int
    top: int
    width: int
    height: int
    size: int

    @classmethod
    def centred(cls, width: int, height: int, size: int) -> Placement:
        """Place a ``width`` x ``height`` picture, longer side scaled to ``size``, in the middle."""
        longer = max(width, height)
        w, h = max(1, round(width * size / longer)), max(1, round(height * size / longer))
        return cls((size - w) // 2, (size - h) // 2, w, h, size)

    def to_square(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Map points ``[..., 2]`` from units of the picture (0..1) to units of the square."""
        scale = np.array([self.width, self.height], dtype=np.float64)
        corner = np.array([self.left, self.top], dtype=np.float64)
        return ((points * scale + corner) / self.size).astype(np.float32)

    def letterbox(self, picture: Picture) -> NDArray[np.uint8]:
        """Return the picture in its black square, uint8 ``[size, size, 3]``, resized once."""
        square = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        square[rows, columns] = picture.rgb(self.width, self.height)
        return square


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a clip: on demand the stored square, and the picture without padding."""

    index: int
    """Number of the frame in its file, from 0."""
    time: float
    """Seconds from the file's time 0."""
    placement: Placement
    picture: Picture

    @property
    def square(self) -> NDArray[np.uint8]:
        """Return the letterboxed picture, RGB uint8 ``[size, size, 3]``; resized at each call."""
        return self.placement.letterbox(self.picture)

    def full(self) -> NDArray[np.uint8]:
        """Return RGB uint8 ``[height, width, 3]`` without padding, longer side <= FULL_SIDE."""
        width, height = self.picture.width, self.picture.height
        scale = min(1.0, FULL_SIDE / max(width, height))
        return self.picture.rgb(max(1, round(width * scale)), max(1, round(height * scale)))


@dataclass(frozen=True)
class TimedPicture:
    """A decoded picture with its place in the file."""

    index: int
    """Number of the frame in its file, from 0."""
    time: float
    """Seconds from the file's time 0."""
    duration: float
    """Seconds that the file says the picture is shown for; 0: it does not say."""
    picture: Picture

    def framed(self, frame_size: int) -> VideoFrame:
        """Place the picture into a square of ``frame_size`` pixels."""
        placement = Placement.centred(self.picture.width, self.picture.height, frame_size)
        return VideoFrame(self.index, self.time, placement, self.picture)
