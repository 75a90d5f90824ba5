"""Frames of a clip: the square they are stored in, the choice by time, and the order of files.

Coordinates: a picture of any size is scaled so that its longer side is ``size`` pixels, centred in
a black square of ``size`` x ``size``. Frames and joints share that square.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FULL_SIDE = 1280  # pixels: landmark models see at most 256 x 256 crops, so more only costs copies
_SLACK = 1e-6  # seconds: far below a frame, far above the rounding of a sum of times


class VideoError(UserError):
    """A clip cannot be read as its table row asks; the message names the file and the reason."""


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
    """Seconds since the file's first frame."""
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
    time: float
    picture: Picture

    def framed(self, frame_size: int) -> VideoFrame:
        """Place the picture into a square of ``frame_size`` pixels."""
        placement = Placement.centred(self.picture.width, self.picture.height, frame_size)
        return VideoFrame(self.index, self.time, placement, self.picture)


def within(
    pictures: Iterable[TimedPicture], start: float, end: float | None, span: float, name: str
) -> Iterator[TimedPicture]:
    """Yield the pictures whose time lies in ``[start, end)``.

    ``span`` is the duration of one frame: an ``end`` that exceeds the video's by no more is taken
    for rounding in the table. Raises :class:`VideoError` when the window leaves the video.
    """
    finish, kept = 0.0, 0
    for timed in pictures:
        if end is not None and timed.time >= end - _SLACK:
            break
        finish = timed.time + span
        if timed.time >= start - _SLACK:
            kept += 1
            yield timed
    else:
        if end is not None and end > finish + span + _SLACK:
            raise VideoError(f"bad time: end {end:g} s is beyond the end of {name}, {finish:.2f} s")
        if not kept:
            raise VideoError(
                f"bad time: start {start:g} s is beyond the end of {name}, {finish:.2f} s"
                if finish
                else f"empty video: {name} holds no frame"
            )
    if not kept:
        raise VideoError(f"bad time: no frame of {name} lies between {start:g} s and {end:g} s")


def resampled(
    pictures: Iterable[TimedPicture], start: float, end: float | None, span: float, fps: float
) -> Iterator[TimedPicture]:
    """Yield for each time ``start + i / fps`` the nearest picture, the earlier one of two.

    A rate above the source's repeats pictures. ``span`` is the duration of a source frame.
    """
    count, held = 0, None
    for timed in pictures:
        while held is not None and start + count / fps <= (held.time + timed.time) / 2 + _SLACK:
            yield held
            count += 1
        held = timed
    if held is None:
        return
    finish = held.time + span if end is None else min(end, held.time + span)
    while start + count / fps < finish - _SLACK:
        yield held
        count += 1


def image_files(folder: Path, suffix: str | None = None) -> list[Path]:
    """Return the png and jpg files of ``folder`` by name, numbers in names as numbers.

    With ``suffix`` only the files that end so. Raises :class:`VideoError` when there is none, or
    when one is a link that leaves the folder.
    """
    suffixes = {suffix} if suffix else set(IMAGE_SUFFIXES)
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not files:
        kind = suffix or "png or jpg"
        raise VideoError(f"empty video: folder {folder.name} holds no {kind} frames")
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise VideoError(f"bad path: {folder.name}/{path.name} is a link out of its folder")
    return sorted(files, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Split a name so that frame10 follows frame9, whether or not numbers are padded."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]
