"""The frames of a clip that is a folder of pictures, read by Pillow one at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from signfuse_dist.data.clock import VideoError, refuse_rate
from signfuse_dist.data.picture import TimedPicture, refuse_large
from signfuse_dist.system_errors import machine_error, machine_fault

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_NUMBER = re.compile(r"([0-9]+)")


def image_files(folder: Path, suffix: str | None = None) -> list[Path]:
    """Return the png and jpg files of ``folder`` by name, numbers in names as numbers.

    With ``suffix`` only the files that end so. A name that begins with a dot is no picture: file
    managers leave such files beside each. Raises :class:`VideoError` when there is none, or when
    one is no regular file.
    """
    suffixes = {suffix} if suffix else set(IMAGE_SUFFIXES)
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    if not files:
        kind = suffix or "png or jpg"
        raise VideoError(f"empty video: folder {folder.name} holds no {kind} frames")
    return sorted(files, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Split a name so that frame10 follows frame9, whether or not numbers are padded."""
    parts = _NUMBER.split(name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


class _FilePicture:
    """One image file of a folder of frames."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        if self._image.size == (width, height):
            return np.asarray(self._image)
        return np.asarray(self._image.resize((width, height), Image.Resampling.BILINEAR))


class FrameFolder:
    """A folder of png or jpg frames, which has no rate of its own: ``fps`` says what it is.

    ``suffix`` is the ending of its frames; None: any of png and jpg.
    """

    tick = 0.0
    """Seconds that a time may be off by: these times are computed."""

    def __init__(self, path: Path, fps: float | None, suffix: str | None = None) -> None:
        if fps is None:
            raise VideoError(
                f"unknown frame rate: {path.name} is a folder of frames, which has none of its "
                "own; say the frames per second to pack at"
            )
        refuse_rate(fps, path.name)
        self.path, self.fps = path, fps
        self.rates = (fps,)
        self._files = image_files(path, suffix)
        self.duration: float | None = len(self._files) / fps
        self.flags: tuple[str, ...] = ("missing_frames",) if _has_gaps(self._files) else ()

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        return

    def pictures(self, start: float | None, exact_index: bool) -> Iterator[TimedPicture]:
        """Yield the frames from before ``start`` seconds on; numbers are always exact here."""
        first = max(0, int((start or 0.0) * self.fps) - 1)
        for index in range(min(first, len(self._files) - 1), len(self._files)):
            yield TimedPicture(index, index / self.fps, 1 / self.fps, self._read(index))

    def _read(self, index: int) -> _FilePicture:
        path = self._files[index]
        name = f"{self.path.name}/{path.name}"
        if not path.is_file():  # reading a pipe would wait for ever
            raise VideoError(f"unreadable video: {name} is no regular file")
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                refuse_large(name, *image.size)
                return _FilePicture(_upright_rgb(image))
        except VideoError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if machine_fault(error):
                raise machine_error(error, path) from error
            words = getattr(error, "strerror", None) or type(error).__name__
            raise VideoError(
                f"truncated video: {name}, {index} of {len(self._files)} frames ({words})"
            ) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Return the picture with 8 bits a channel, turned as its EXIF orientation says."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BITS:  # Pillow would cut every value above 255 to white
        grey = (np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        upright = Image.fromarray(grey)
    return upright.convert("RGB")


def _has_gaps(files: list[Path]) -> bool:
    """Say whether the numbers in the names leave some out: the last number that differs counts."""
    numbers = [[int(n) for n in _NUMBER.findall(path.stem)] for path in files]
    if len({len(row) for row in numbers}) != 1 or not numbers[0]:
        return False
    columns = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if not columns:
        return False
    steps = Counter(np.diff(columns[-1]).tolist())
    return len(steps) > 1
