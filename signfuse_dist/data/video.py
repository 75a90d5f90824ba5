"""The frames of a clip: from a video file by PyAV, from a folder by Pillow, one frame at a time.

Coordinates: a picture of any size is scaled so that its longer side is ``size`` pixels, centred in
a black square of ``size`` x ``size``. Frames and joints share that square. Which frames are stored
is chosen by time.

Nothing here holds more than the frame being read and the one before it. Decoder and scaler run on
one thread: packing is parallel over clips, and a scaler that starts threads is three times slower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame as AvFrame
    from av.video.stream import VideoStream


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


# A playlist or an image pattern could make the demuxer open other files or addresses.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf",
    "protocol_whitelist": "file",
}
_SEEK_AFTER = 2.0  # seconds: below this, decoding from the beginning costs no more than seeking
_TOLERATED = 0.05  # share of the frames a container announces that may be missing


class _Scaler:
    """Scales decoded frames; two reformatters, because each caches the one size it last made."""

    def __init__(self) -> None:
        self._by_size: dict[tuple[int, int], VideoReformatter] = {}

    def rgb(self, frame: AvFrame, width: int, height: int) -> NDArray[np.uint8]:
        reformatter = self._by_size.setdefault((width, height), VideoReformatter())
        scaled = reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return np.asarray(scaled.to_ndarray(), dtype=np.uint8)


class _DecodedPicture:
    """A frame of a video file, turned upright and with square pixels when it is asked for."""

    def __init__(self, frame: AvFrame, aspect: tuple[int, int], scaler: _Scaler) -> None:
        self._frame, self._scaler = frame, scaler
        self._quarters = round(frame.rotation / 90) % 4
        width, height = max(1, round(frame.width * aspect[0] / aspect[1])), frame.height
        self.width, self.height = (height, width) if self._quarters % 2 else (width, height)

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        if self._quarters % 2:
            width, height = height, width
        picture = self._scaler.rgb(self._frame, width, height)
        return np.rot90(picture, self._quarters) if self._quarters else picture


class VideoFile:
    """A video file open for reading. Raises :class:`VideoError` when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scaler = _Scaler()
        self._container, self._stream = self._open()
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            self._container.close()
            raise VideoError(f"unreadable video: {path.name} names no frame rate")
        self.fps = float(rate)
        self.exact_count = self._stream.frames > 0
        self.expected_frames = self._stream.frames or self._frames_by_duration()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def pictures(self, start: float, exact_index: bool) -> Iterator[TimedPicture]:
        """Yield pictures from the nearest key frame at or before ``start`` seconds.

        A start beyond the first seconds is reached by seeking, and frames are then numbered by
        their time; ``exact_index`` decodes from the beginning and counts. Raises
        :class:`VideoError` for damage, and at the end of the file when frames are missing.
        """
        if start > _SEEK_AFTER and not exact_index and self._stream.start_time is not None:
            offset = int(self._stream.start_time + start / self._time_base)
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
                decoded = self._decode(start, seeked=True)
                first = next(decoded, None)
            except av.FFmpegError:
                first = None
            if first is not None and first.time <= start:
                yield first
                yield from decoded
                return
            # This container cannot be seeked exactly: read it again from its first frame.
            self._container.close()
            self._container, self._stream = self._open()
        yield from self._decode(start, seeked=False)

    @property
    def _time_base(self) -> Fraction:
        return _fraction(self._stream.time_base or Fraction(1, 1000))

    def _open(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open(str(self.path.absolute()), options=_OPTIONS)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"unreadable video: {self.path.name}, 0 frames of an unknown number "
                f"({_cause(error)}); is the file complete?"
            ) from error
        if not container.streams.video:
            container.close()
            raise VideoError(f"unreadable video: {self.path.name} holds no pictures, 0 frames")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return container, stream

    def _frames_by_duration(self) -> int | None:
        """Estimate the number of frames where the container does not say, or give None."""
        if self._stream.duration:
            return round(self._stream.duration * self._time_base * Fraction(self.fps))
        hours, _, rest = self._stream.metadata.get("DURATION", "").partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * self.fps)
        except ValueError:
            return None

    def _decode(self, start: float, seeked: bool) -> Iterator[TimedPicture]:
        """Decode to the end of the file; frames are only refused as damaged from ``start`` on."""
        count, discarded, index, origin = 0, 0, -1, self._stream.start_time
        aspect = _fraction(self._stream.sample_aspect_ratio or 1).as_integer_ratio()
        # Integers give the same times as fractions, which are slow for something done every frame.
        numerator, denominator = self._time_base.as_integer_ratio()
        try:
            for packet in self._container.demux(self._stream):
                discarded += packet.is_discard
                for frame in packet.decode():
                    if frame.pts is not None and origin is None:
                        origin = frame.pts
                    if frame.pts is None:
                        time = count / self.fps
                    else:
                        time = (frame.pts - (origin or 0)) * numerator / denominator
                    index = round(time * self.fps) if seeked else count
                    if (frame.is_corrupt or packet.is_corrupt) and time >= start:
                        raise VideoError(self._missing(index, "a damaged frame"))
                    count += 1
                    yield TimedPicture(index, time, _DecodedPicture(frame, aspect, self._scaler))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(self._missing(index + 1, _cause(error))) from error
        self._refuse_missing(index + 1, discarded)

    def _refuse_missing(self, got: int, discarded: int) -> None:
        if self.expected_frames is None:
            return
        expected = self.expected_frames - discarded
        allowed = int(expected * _TOLERATED)
        if expected - got > (allowed if self.exact_count else max(1, allowed)):
            raise VideoError(self._missing(got, "the file ends early"))

    def _missing(self, got: int, cause: str) -> str:
        expected = "an unknown number" if self.expected_frames is None else self.expected_frames
        return f"truncated video: {self.path.name}, {got} of {expected} frames ({cause})"


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

    def __init__(self, path: Path, fps: float | None, suffix: str | None = None) -> None:
        if fps is None:
            raise VideoError(
                f"unknown frame rate: {path.name} is a folder of frames, which has none of its "
                "own; say the frames per second to pack at"
            )
        self.path, self.fps = path, fps
        self._files = image_files(path, suffix)
        self.expected_frames: int | None = len(self._files)

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        return

    def pictures(self, start: float, exact_index: bool) -> Iterator[TimedPicture]:
        """Yield the frames from ``start`` seconds on; numbers are always exact here."""
        first = max(0, int(start * self.fps) - 1)
        for index in range(min(first, len(self._files) - 1), len(self._files)):
            yield TimedPicture(index, index / self.fps, self._read(index))

    def _read(self, index: int) -> _FilePicture:
        path = self._files[index]
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                return _FilePicture(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(
                f"truncated video: {self.path.name}/{path.name}, {index} of "
                f"{len(self._files)} frames ({_cause(error)})"
            ) from error


def open_video(
    path: Path, folder_fps: float | None = None, folder_suffix: str | None = None
) -> VideoFile | FrameFolder:
    """Open a video file or a folder of frames; use it as a context manager.

    ``folder_fps`` is the rate of a folder's frames, ``folder_suffix`` their ending. Raises
    :class:`VideoError` when the path does not exist or holds no frames.
    """
    if path.is_dir():
        return FrameFolder(path, folder_fps, folder_suffix)
    if not path.is_file():
        raise VideoError(f"missing video: {path.name} is no file and no folder of frames")
    return VideoFile(path)


def read_frames(
    source: VideoFile | FrameFolder,
    frame_size: int,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    exact_index: bool = False,
) -> Iterator[VideoFrame]:
    """Yield the frames of ``[start, end)`` seconds at ``fps`` (None: the source's own rate).

    Frames are letterboxed squares of ``frame_size`` pixels; ``exact_index`` makes their numbers
    exact at the price of decoding from the first frame. Raises :class:`VideoError` for a truncated
    or damaged source and for a window that leaves it.
    """
    begin, span = start or 0.0, 1 / source.fps
    timed = within(source.pictures(begin, exact_index), begin, end, span, source.path.name)
    if fps is not None and fps != source.fps:
        timed = resampled(timed, begin, end, span, fps)
    for picture in timed:
        yield picture.framed(frame_size)


def _fraction(ratio: Any) -> Fraction:
    """Return a ratio as a fraction; from version 19 on PyAV has a type of its own for them."""
    return Fraction(ratio.numerator, ratio.denominator)


def _cause(error: BaseException) -> str:
    """Return the error's own words without the path that decoders put into them."""
    words = getattr(error, "strerror", None)
    return str(words or type(error).__name__)
