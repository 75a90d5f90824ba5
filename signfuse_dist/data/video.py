"""The frames of a clip: from a video file by PyAV, or from a folder of pictures.

Times are the container's, in seconds from the file's time 0, as players and ``ffmpeg -ss`` count:
the earliest start of any of its streams. Which picture is shown when is decided in
:mod:`signfuse_dist.data.clock`.

Nothing here holds more than the frame being read and the one before it. Decoder and scaler run on
one thread: packing is parallel over clips, and a scaler that starts threads is three times slower.
"""

from __future__ import annotations

import heapq
import stat
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from signfuse_dist.corpora import Box
from signfuse_dist.data.clock import (
    MAX_GAP,
    Timing,
    VideoError,
    Window,
    as_decoded,
    resampled,
    shown,
)
from signfuse_dist.data.frame_folder import FrameFolder
from signfuse_dist.data.picture import TimedPicture, VideoFrame, refuse_large
from signfuse_dist.system_errors import machine_error, machine_fault

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame as AvFrame
    from av.video.stream import VideoStream


# A playlist or an image pattern could make the demuxer open other files or addresses.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf",
    "protocol_whitelist": "file",
}
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_SEEK_AFTER = 2.0  # seconds: below this, decoding from the beginning costs no more than seeking
_STEPS_BACK = (0.0, 2.0, 8.0, 32.0)  # seconds before the start at which a key frame is looked for
_TOLERATED, _AT_MOST = 0.05, 1.0  # share of the duration, and seconds, that may be missing
_STEP_BACK = 0.2  # seconds by which the clock of a programme stream may jump back
_ROUNDING = 1e-3  # seconds: no container that is read here keeps its times less exactly
_PLAUSIBLE = (1.0, 240.0)  # frames a second; a container without a rate names its time base's


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

    def __init__(
        self,
        frame: AvFrame,
        orientation: tuple[bool, bool, bool],
        aspect: tuple[int, int],
        scaler: _Scaler,
    ) -> None:
        self._frame, self._scaler = frame, scaler
        self._transposed, self._mirrored, self._upside_down = orientation
        width, height = max(1, round(frame.width * aspect[0] / aspect[1])), frame.height
        self.width, self.height = (height, width) if self._transposed else (width, height)

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        if self._transposed:
            return self._flipped(self._scaler.rgb(self._frame, height, width).transpose(1, 0, 2))
        return self._flipped(self._scaler.rgb(self._frame, width, height))

    def _flipped(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        columns = slice(None, None, -1 if self._mirrored else 1)
        return picture[:: -1 if self._upside_down else 1, columns]


def _orientation(frame: AvFrame) -> tuple[bool, bool, bool]:
    """Return how a frame is shown: transposed, then mirrored left to right, then top to bottom.

    The display matrix sends a point (x, y) to (a x + c y, b x + d y); one that turns by less than a
    quarter is taken for the nearest that does.
    """
    if SideData.DISPLAYMATRIX not in frame.side_data:
        return False, False, False
    matrix = bytes(frame.side_data[SideData.DISPLAYMATRIX])  # type: ignore[typeddict-item]
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


class VideoFile:
    """A video file open for reading. Raises :class:`VideoError` when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scaler = _Scaler()
        self._container, self._stream = self._open()
        self._interlaced = False
        self._others_end = 0.0
        self._orientations: dict[int, tuple[bool, bool, bool]] = {}
        named = (self._stream.guessed_rate, self._stream.average_rate)
        rates = [float(rate) for rate in named if rate]
        self.rates = tuple(r for r in rates if _PLAUSIBLE[0] <= r <= _PLAUSIBLE[1]) or (25.0,)
        """Frames a second that the container names, or a guess; the truth may be another."""
        self.announced_size = self._stream.width, self._stream.height
        """Width and height in pixels that the file's header names; a frame may have others."""
        self.tick = min(float(self._time_base), _ROUNDING)
        """Seconds that a time may be off by, because the container rounds."""
        self.duration = self._announced()
        """Seconds from time 0 to the end of the pictures, as announced; None: not announced."""

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    @property
    def flags(self) -> tuple[str, ...]:
        """``interlaced``, where a picture that was read so far is made of two fields."""
        return ("interlaced",) if self._interlaced else ()

    def pictures(self, start: float | None, exact_index: bool) -> Iterator[TimedPicture]:
        """Yield pictures from one that is shown at or before ``start`` seconds, or from the first.

        A start beyond the first seconds is reached by seeking, where what comes after is exact, and
        frames are then numbered by their time; ``exact_index`` decodes from the beginning and
        counts. Raises :class:`VideoError` for damage, and at the end of the file when it ends
        before the announced duration.
        """
        if start is not None and start > _SEEK_AFTER and not exact_index and self._can_seek:
            for step in _STEPS_BACK:
                decoded = self._sought(max(0.0, start - step), start)
                if decoded is not None:
                    yield from decoded
                    return
            self._container.close()
            self._container, self._stream = self._open()
        yield from self._decode(start or 0.0, None)

    def _sought(self, place: float, start: float) -> Iterator[TimedPicture] | None:
        """Seek to ``place``, and return what is decoded there if it begins by ``start``."""
        latest = start + self.tick / 2
        key_frame = self._key_frame(place)
        if key_frame is None or self._time(key_frame.pts) > latest:
            return None
        decoded = self._decode(start, key_frame)
        try:
            # Where pictures are refreshed in parts, the first that is whole may come much later.
            first = next(decoded, None)
        except VideoError:
            return None  # read from an earlier place, it will be found again
        return None if first is None or first.time > latest else chain([first], decoded)

    @property
    def _time_base(self) -> Fraction:
        return _fraction(self._stream.time_base or Fraction(1, 1000))

    @property
    def _origin(self) -> float:
        """Seconds on the container's own clock that are the file's time 0."""
        start = self._container.start_time
        return 0.0 if start is None or self._counts_packets else start / av.time_base

    @property
    def _counts_packets(self) -> bool:
        """Whether the container keeps no time for pictures that are decoded out of their order.

        AVI says when a frame is read, not when it is shown: frames in the order of showing get the
        times of reading, in their order. For H.264 FFmpeg makes times up even where the two agree.
        """
        codec = self._stream.codec_context
        reordered = codec.has_b_frames or codec.name in ("h264", "hevc")
        return self._container.format.name == "avi" and bool(reordered)

    @property
    def _can_seek(self) -> bool:
        """Whether times are right after a seek; in some containers they are guessed there."""
        return self._container.format.name not in ("mpeg", "mxf") and not self._counts_packets

    def _time(self, pts: int | None) -> float:
        numerator, denominator = self._time_base.as_integer_ratio()
        # A packet without a time is as good as one after everything: it proves nothing.
        return float("inf") if pts is None else pts * numerator / denominator - self._origin

    def _open(self) -> tuple[InputContainer, VideoStream]:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # reading a pipe would wait for ever
                raise VideoError(f"unreadable video: {self.path.name} is no regular file")
            container = av.open(str(self.path.absolute()), options=_OPTIONS)
        except (av.FFmpegError, OSError) as error:
            if machine_fault(error):
                raise machine_error(error, self.path) from error
            raise VideoError(
                f"unreadable video: {self.path.name}, 0 frames of an unknown number "
                f"({_cause(error)}); is the file complete?"
            ) from error
        films = [s for s in container.streams.video if not s.disposition & _COVERS]
        if not films:
            container.close()
            raise VideoError(f"unreadable video: {self.path.name} holds no pictures, 0 frames")
        best = container.streams.best("video")
        stream = best if best in films else max(films, key=lambda s: (s.frames, s.width * s.height))
        try:
            refuse_large(self.path.name, stream.width, stream.height)
        except VideoError:
            container.close()
            raise
        stream.codec_context.thread_count = 1
        return container, stream

    def _announced(self) -> float | None:
        """Return the earlier of the stream's end and the container's, as far as they are named."""
        ends = []
        if self._stream.duration:
            ends.append(self._time((self._stream.start_time or 0) + self._stream.duration))
        if self._container.duration:
            # Matroska counts it from its clock's 0, which may lie before the file's time 0.
            ends.append(self._container.duration / av.time_base - max(0.0, self._origin))
        return min(ends) if ends else None

    def _key_frame(self, start: float) -> Packet[Any] | None:
        """Seek, and return the first key frame from there on; None where there is none."""
        try:
            offset = int((start + self._origin) / self._time_base)
            self._container.seek(offset, stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
            return next((p for p in packets if p.is_keyframe and p.pts is not None), None)
        except (av.FFmpegError, OSError) as error:
            if machine_fault(error):
                raise machine_error(error, self.path) from error
            return None

    def _decode(self, start: float, key_frame: Packet[Any] | None) -> Iterator[TimedPicture]:
        """Decode to the end of the file; frames are only refused as damaged from ``start`` on.

        With a ``key_frame``, from that packet on: what is shown before it may need pictures that
        were not decoded, as in an open group of pictures, and is left out.
        """
        count, time, duration = 0, 0.0, 0.0
        first = None if key_frame is None else key_frame.pts
        read_times: list[int] = []
        distance, read = 0, -1 << 62  # between the last two packets, and when the last was read
        aspect = _fraction(self._stream.sample_aspect_ratio or 1).as_integer_ratio()
        numerator, denominator = self._time_base.as_integer_ratio()
        origin, rate = self._origin, self.rates[0]
        programme, last = self._container.format.name == "mpeg", float("-inf")
        try:
            for packet in self._packets(key_frame):
                if packet.stream.index != self._stream.index:
                    continue
                if self._counts_packets and packet.dts is not None:
                    if self._stream.codec_context.has_b_frames:
                        self._refuse_uneven(distance, packet.dts - read)
                    distance, read = packet.dts - read, packet.dts
                    heapq.heappush(read_times, packet.dts)
                for frame in packet.decode():
                    pts = heapq.heappop(read_times) if read_times else frame.pts
                    if first is not None and pts is not None and pts < first:
                        continue
                    # Integers give the same times as fractions, which are slow.
                    time = count / rate if pts is None else pts * numerator / denominator - origin
                    if programme and last - _STEP_BACK < time <= last:
                        time = last + _ROUNDING  # its clock jumps by a few pictures now and then
                    last = time
                    duration = (frame.duration or 0) * numerator / denominator
                    index = count if key_frame is None else round(time * rate)
                    if (frame.is_corrupt or packet.is_corrupt) and time >= start:
                        raise VideoError(self._missing(index, "a damaged frame"))
                    self._interlaced |= frame.interlaced_frame
                    count += 1
                    # Looking at side data makes a cycle that keeps a frame in memory: once a turn.
                    if frame.rotation not in self._orientations:
                        self._orientations[frame.rotation] = _orientation(frame)
                    orientation = self._orientations[frame.rotation]
                    picture = _DecodedPicture(frame, orientation, aspect, self._scaler)
                    yield TimedPicture(index, time, duration, picture)
        except (av.FFmpegError, OSError, IndexError) as error:  # PyAV's, for a stream it lacks
            if machine_fault(error):
                raise machine_error(error, self.path) from error
            index = count if key_frame is None else round(time * rate)
            raise VideoError(self._missing(index, _cause(error))) from error
        self._refuse_missing(count, time + max(duration, 1 / rate))

    def _refuse_uneven(self, before: int, distance: int) -> None:
        """Raise :class:`VideoError` where two distances of reading differ, in units of the clock.

        Pictures that are decoded out of their order are read earlier than they are shown, by a
        number of pictures: at varying distances nobody knows which time that is.
        """
        if 0 < before < 1 << 61 and abs(distance - before) * self._time_base > 2 * _ROUNDING:
            raise VideoError(
                f"unknown times: {self.path.name} is an AVI of varying rate whose pictures are "
                "decoded out of their order, and AVI does not say when such a picture is shown; "
                "convert what it was made from to .mp4"
            )

    def _packets(self, key_frame: Packet[Any] | None) -> Iterator[Packet[Any]]:
        """Yield the packets of the pictures, and where only the file says how long it is, all."""
        if key_frame is not None:
            yield key_frame
        own = None if self._container.format.name == "asf" else self._stream.duration
        whole_file = own is None and self._container.duration is not None  # asf has the file's
        for packet in self._container.demux(*([] if whole_file else [self._stream])):
            if packet.stream.index != self._stream.index and packet.pts is not None:
                base = _fraction(packet.time_base)
                end = float((packet.pts + (packet.duration or 0)) * base) - self._origin
                self._others_end = max(self._others_end, end)
            yield packet

    def _refuse_missing(self, count: int, end: float) -> None:
        """Raise :class:`VideoError` when the file was to go on for longer than to ``end``."""
        if self.duration is None:
            return
        allowed = max(2 / self.rates[0], min(_TOLERATED * self.duration, _AT_MOST))
        if self.duration - max(end, self._others_end) > allowed:
            raise VideoError(self._missing(count, "the file ends early"))

    def _missing(self, got: int, cause: str) -> str:
        expected: int | str = "an unknown number"
        if self.duration is not None:
            expected = self._stream.frames or round(self.duration * self.rates[0])
        return f"truncated video: {self.path.name}, {got} of {expected} frames ({cause})"


def open_video(
    path: Path, folder_fps: float | None = None, folder_suffix: str | None = None
) -> VideoFile | FrameFolder:
    """Open a video file or a folder of frames; use it as a context manager.

    ``folder_fps`` is the rate of a folder's frames, ``folder_suffix`` their ending. Raises
    :class:`VideoError` when the path does not exist or holds no frames.
    """
    if path.is_dir():
        return FrameFolder(path, folder_fps, folder_suffix)
    if not path.exists():
        raise VideoError(f"missing video: {path.name} is no file and no folder of frames")
    return VideoFile(path)


class FrameSource(Protocol):
    """What a clip's frames come from: a video, a folder of frames, or joints alone."""

    @property
    def path(self) -> Path: ...
    @property
    def rates(self) -> tuple[float, ...]: ...
    @property
    def tick(self) -> float: ...
    @property
    def flags(self) -> tuple[str, ...]: ...
    def pictures(self, start: float | None, exact_index: bool) -> Iterator[TimedPicture]: ...


class FrameReader:
    """Reads the frames of a clip, once; then it is known at which rate they came.

    Without ``fps`` they are the pictures that appear in ``[start, end)`` seconds, each once, at
    whatever distances; with it, what is on the screen at equal steps. A picture is held for at
    most ``max_gap`` seconds. Frames are squares of ``frame_size`` pixels, in which the picture is
    letterboxed, or which ``box`` of the picture fills.
    ``exact_index`` makes their numbers exact at the price of decoding from the first. Iterating
    raises :class:`VideoError` for a truncated or damaged source, for a window that leaves it, and
    for a longer gap.
    """

    def __init__(
        self,
        source: FrameSource,
        frame_size: int,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        exact_index: bool = False,
        max_gap: float = MAX_GAP,
        box: Box | None = None,
    ) -> None:
        self._source, self._frame_size, self._fps = source, frame_size, fps
        self._box = box
        self._timing = Timing(source.rates, source.tick)
        pictures = source.pictures(start, exact_index)
        window = Window(start, end)
        on_screen = shown(pictures, window, self._timing, max_gap, source.path.name)
        self._pictures = (
            as_decoded(on_screen) if fps is None else resampled(on_screen, fps, self._timing)
        )

    def __iter__(self) -> Iterator[VideoFrame]:
        return (picture.framed(self._frame_size, self._box) for picture in self._pictures)

    @property
    def fps(self) -> float:
        """Frames a second, once they are read: as asked, or the source's true rate."""
        return self._fps or self._timing.rate

    @property
    def flags(self) -> tuple[str, ...]:
        """What is unusual about the source, once the frames are read."""
        return (*self._timing.flags, *self._source.flags)


def _fraction(ratio: Any) -> Fraction:
    """Return a ratio as a fraction; from version 19 on PyAV has a type of its own for them."""
    return Fraction(ratio.numerator, ratio.denominator)


def _cause(error: BaseException) -> str:
    """Return the error's own words without the path that decoders put into them."""
    words = getattr(error, "strerror", None)
    return str(words or type(error).__name__)
