"""One decoded picture of a clip, and where it lies in the stored square.

Coordinates: a picture of any size is scaled so that its longer side is ``size`` pixels, centred in
a black square of ``size`` x ``size``; or a box of the picture fills that square. Frames and joints
share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from signfuse_dist.corpora import Box
from signfuse_dist.data.clock import VideoError

FULL_SIDE = 1280  # pixels: landmark models see at most 256 x 256 crops, so more only costs copies
MAX_PIXELS = 2**26
"""Pixels of a picture that is decoded: 8192 x 8192. A header can ask for any memory."""
_ROUNDING = 1e-6  # pixels: far above that of shares, far below what is seen


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
    """Where a picture lies in its square, in pixels of the square.

    Of a picture that is cropped, the corner is left of the square or above it, and width and height
    are those that the whole picture would have. What lies outside the picture is black.
    """

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

    @classmethod
    def around(cls, box: Box, width: int, height: int, size: int) -> Placement:
        """Place a ``width`` x ``height`` picture so that ``box``, :func:`squared`, fills a square.

        Raises :class:`VideoError` for a box that is smaller than a pixel.
        """
        box = squared(box, width, height)
        side = (box.x1 - box.x0) * width
        w, h = max(1, round(width * size / side)), max(1, round(height * size / side))
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        return cls(round(size / 2 - x * w), round(size / 2 - y * h), w, h, size)

    @property
    def is_whole(self) -> bool:
        """Whether no part of the picture lies outside the square."""
        return min(self.left, self.top) >= 0 and (
            max(self.left + self.width, self.top + self.height) <= self.size
        )

    def to_square(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Map points ``[..., 2]`` from units of the picture (0..1) to units of the square."""
        scale = np.array([self.width, self.height], dtype=np.float64)
        corner = np.array([self.left, self.top], dtype=np.float64)
        return ((points * scale + corner) / self.size).astype(np.float32)

    def to_picture(self, points: NDArray[np.float32]) -> NDArray[np.float64]:
        """Map points ``[..., 2]`` from units of the square to units of the picture (0..1)."""
        scale = np.array([self.width, self.height], dtype=np.float64)
        corner = np.array([self.left, self.top], dtype=np.float64)
        return (points.astype(np.float64) * self.size - corner) / scale

    def seen(self) -> Box:
        """Return the part of the picture that lies in the square."""
        inner = self.size
        return Box(
            max(0, -self.left) / self.width,
            max(0, -self.top) / self.height,
            min(self.width, inner - self.left) / self.width,
            min(self.height, inner - self.top) / self.height,
        )

    def draw(self, picture: Picture) -> NDArray[np.uint8]:
        """Return the picture in its black square, uint8 ``[size, size, 3]``, scaled once.

        The whole picture is scaled and the square cut out of it, which costs less than cutting at
        full resolution. Enlarged, the whole could take any memory, so there it is cut first.
        """
        square = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        left, top = max(0, self.left), max(0, self.top)
        right = min(self.size, self.left + self.width)
        bottom = min(self.size, self.top + self.height)
        if left >= right or top >= bottom:
            return square
        if self.is_whole or self.width <= picture.width:
            scaled = picture.rgb(self.width, self.height)
            x, y = left - self.left, top - self.top
            shown = scaled[y : y + bottom - top, x : x + right - left]
        else:
            shown = self._enlarged(picture, (left, top, right, bottom))
        square[top:bottom, left:right] = shown
        return square

    def _enlarged(self, picture: Picture, shown: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels ``shown`` (left, top, right, bottom) of the square, from full size."""
        left, top, right, bottom = shown
        full = Image.fromarray(np.ascontiguousarray(picture.rgb(picture.width, picture.height)))
        x, y = picture.width / self.width, picture.height / self.height
        area = (
            (left - self.left) * x,
            (top - self.top) * y,
            min((right - self.left) * x, picture.width),
            min((bottom - self.top) * y, picture.height),
        )
        return np.asarray(
            full.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=area)
        )


def squared(box: Box, width: int, height: int) -> Box:
    """Widen a box to a square around its centre, of whole pixels of a picture of this size.

    It may reach out of the picture; a square of whole pixels stays as it is. Raises
    :class:`VideoError` for a box that is smaller than a pixel.
    """
    x0, y0, x1, y1 = box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height
    longer = max(x1 - x0, y1 - y0) + _ROUNDING
    if longer < 1:
        raise VideoError(f"bad box: {box} covers less than a pixel of {width} x {height}")
    side = math.ceil(longer - 2 * _ROUNDING)
    return square_at((x0 + x1) / 2, (y0 + y1) / 2, side, width, height)


def square_at(x: float, y: float, side: int, width: int, height: int) -> Box:
    """Return the square of ``side`` pixels whose centre is nearest to a point, in shares."""
    left, top = round(x - side / 2), round(y - side / 2)
    return Box(left / width, top / height, (left + side) / width, (top + side) / height)


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a clip: on demand the stored square, and what is looked at for joints."""

    index: int
    """Number of the frame in its file, from 0."""
    time: float
    """Seconds from the file's time 0."""
    placement: Placement
    picture: Picture

    @property
    def square(self) -> NDArray[np.uint8]:
        """Return the stored picture, RGB uint8 ``[size, size, 3]``; scaled at each call."""
        return self.placement.draw(self.picture)

    def full(self) -> NDArray[np.uint8]:
        """Return RGB uint8 ``[height, width, 3]`` without padding, longer side <= FULL_SIDE.

        Of a picture that is cropped, only what lies in the square: in a picture of several people
        the box says who signs.
        """
        width, height = self._full_size()
        picture = self.picture.rgb(width, height)
        if self.placement.is_whole:
            return picture
        x0, y0, x1, y1 = self._seen(width, height)
        return picture[y0:y1, x0:x1]

    def to_square(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Map points ``[..., 2]`` from units of :meth:`full` to units of the square."""
        if self.placement.is_whole:
            return self.placement.to_square(points)
        width, height = self._full_size()
        x0, y0, x1, y1 = self._seen(width, height)
        inside = points * [x1 - x0, y1 - y0] + [x0, y0]
        return self.placement.to_square(inside / [width, height])

    @property
    def letterboxed(self) -> Placement:
        """Where the picture would lie if it were not cropped."""
        size = self.placement.size
        return Placement.centred(self.picture.width, self.picture.height, size)

    def _full_size(self) -> tuple[int, int]:
        """Return width and height of the whole picture where :meth:`full` is cut out of it."""
        width, height = self.picture.width, self.picture.height
        seen = self.placement.seen()
        longer = max((seen.x1 - seen.x0) * width, (seen.y1 - seen.y0) * height)
        scale = min(1.0, FULL_SIDE / longer) if longer else 1.0
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _seen(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return what lies in the square as pixels of a ``width`` x ``height`` picture."""
        seen = self.placement.seen()
        x0, y0 = min(int(seen.x0 * width), width - 1), min(int(seen.y0 * height), height - 1)
        x1, y1 = math.ceil(seen.x1 * width), math.ceil(seen.y1 * height)
        return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


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

    def framed(self, frame_size: int, box: Box | None = None) -> VideoFrame:
        """Place the picture into a square of ``frame_size`` pixels, or the part in ``box``."""
        size = (self.picture.width, self.picture.height, frame_size)
        placement = Placement.centred(*size) if box is None else Placement.around(box, *size)
        return VideoFrame(self.index, self.time, placement, self.picture)
