"""Joints that come with a clip over its whole length, and clips of which there is nothing else.

A track has a row for each picture of its film, at the film's rate. Beside a video its rows are
picked by the frames' times (:class:`TrackJoints`); without one, the track itself is the film
(:class:`TrackSource`): windows, rates and crops are those of :class:`.FrameReader`, and there is
nothing to decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.data.clock import VideoError, refuse_rate
from signfuse_dist.data.joints import Joints, PoseError, PoseExtractor, PoseTrack, stacked
from signfuse_dist.data.picture import TimedPicture, VideoFrame
from signfuse_dist.skeleton import NUM_JOINTS

_SHAPES_AGREE = 0.02  # relative: width over height of the poses' picture and of the video's
_RATES_AGREE = 0.01  # relative: 29.97 and 30 frames a second are 0.001 apart
_OUTSIDE = 0.25  # share of the picture by which a point may lie outside it
_MOST_OUTSIDE = 0.1  # share of the points that may lie farther outside
_LENGTHS_AGREE = 2
"""Frames that poses and a whole video may differ by: tools drop one at either end."""


TrackReader = Callable[[Path], PoseTrack]
"""Reads a file of joints; raises :class:`PoseError` naming it and what is wrong."""


class NoPicture:
    """Stands for the picture of a clip that has none; only its size is known."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """Raise :class:`PoseError`: somebody wants to look at what is not there."""
        raise PoseError("no video: the row has joints alone, and this extractor needs pictures")


class TrackSource:
    """A track as the film of a clip, in the place of a video or of a folder of frames.

    Raises :class:`VideoError` where neither the track nor the row says how fast it goes, or how
    wide its picture is to its height, and where they contradict each other.
    """

    tick = 0.0
    """Seconds that a time may be off by: these times are computed."""
    flags: tuple[str, ...] = ()

    def __init__(
        self, track: PoseTrack, path: Path, fps: float | None, size: tuple[int, int] | None
    ) -> None:
        self.path = path
        if track.size and size and not _alike(track.size, size):
            raise VideoError(_other_shape(track, size, "the row says"))
        if track.fps and fps and abs(track.fps / fps - 1) > _RATES_AGREE:
            raise VideoError(
                f"bad poses: {track.name} has {track.fps:g} frames a second, the row says {fps:g}"
            )
        rate, picture = track.fps or fps, track.size or size
        if rate is None:
            raise VideoError(
                f"unknown frame rate: {track.name} does not say its own; give the table a column "
                "`fps`, or --fps (of a new clip: --folder-fps)"
            )
        refuse_rate(rate, track.name)
        if picture is None:
            raise VideoError(
                f"unknown picture: {track.name} does not say which picture its points are in; give "
                "the table a column `size`, as 1280x720 (of a new clip: --picture-size 1280x720)"
            )
        if not len(track.points):
            raise VideoError(f"empty video: {track.name} holds no frame")
        self._picture = NoPicture(*picture)
        self._count, self._fps = len(track.points), rate
        self.rates = (rate,)
        self.duration: float | None = self._count / rate

    def __enter__(self) -> TrackSource:
        return self

    def __exit__(self, *_: Any) -> None:
        return

    def pictures(self, start: float | None, exact_index: bool) -> Iterator[TimedPicture]:
        """Yield a place without a picture for each row, from before ``start`` seconds on."""
        first = min(max(0, int((start or 0.0) * self._fps) - 1), self._count - 1)
        for index in range(first, self._count):
            yield TimedPicture(index, index / self._fps, 1 / self._fps, self._picture)


class TrackJoints(PoseExtractor):
    """Picks the rows of a track for the frames of a clip; pictures are not looked at.

    ``starts`` is the second of the film that the first row shows, where the track is of a part of
    it: then frames before and after it have no joints.
    """

    version = "1"

    def __init__(self, track: PoseTrack, name: str, starts: float | None = None) -> None:
        self.name, self.track, self._starts = name, track, starts
        self._rate, self._whole = 1.0, False

    @property
    def layout(self) -> str:
        """Which points the file has."""
        return self.track.layout

    def compare(self, rate: float, whole: bool) -> None:
        """Take in what is known of the film before its frames: its rate, and if all are asked for.

        Raises :class:`PoseError` where the track has another rate.
        """
        track, self._rate, self._whole = self.track, rate, whole
        if track.fps is not None and abs(track.fps / rate - 1) > _RATES_AGREE:
            raise PoseError(
                f"bad poses: {track.name} has {track.fps:g} frames a second, the video {rate:g}"
            )

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the joints of the frames that are chosen, missing where the track has no row.

        Raises :class:`PoseError` where the track does not belong to the film: its picture has
        another shape, its points lie outside, it ends before the clip or goes on after it, or
        shows none of it.
        """
        track, rows = self.track, []
        shares: dict[tuple[int, int], NDArray[np.float64]] = {}
        missing = np.full((NUM_JOINTS, 2), np.nan)
        places: list[int] = []
        for frame in frames:
            size = frame.picture.width, frame.picture.height
            if size not in shares:
                shares[size] = self._shares(size)
            place = frame.index
            if self._starts is not None:
                place = round((frame.time - self._starts) * self._rate)
            there = 0 <= place < len(track.points)
            rows.append(frame.placement.to_square(shares[size][place] if there else missing))
            places.append(place)
        self._refuse_other_length(places)
        return Joints(*stacked(rows))

    def _shares(self, size: tuple[int, int]) -> NDArray[np.float64]:
        track = self.track
        if track.size is not None and not _alike(track.size, size):
            raise PoseError(_other_shape(track, size, "the video's is"))
        shares = track.shares(*size)
        if not track.in_pixels:
            return shares  # a tracker may well place what it does not see outside the picture
        found = shares[np.isfinite(shares).all(axis=-1)]
        outside = ((found < -_OUTSIDE) | (found > 1 + _OUTSIDE)).any(axis=-1)
        if outside.sum() > _MOST_OUTSIDE * len(outside):
            raise PoseError(
                f"bad poses: {outside.mean():.0%} of the points of {track.name} lie far outside "
                f"the picture of {size[0]} x {size[1]}; are they in pixels of another size?"
            )
        return shares

    def _refuse_other_length(self, places: Sequence[int]) -> None:
        track, count = self.track, len(self.track.points)
        if not places:
            return
        if self._starts is not None:
            if not any(0 <= place < count for place in places):
                raise PoseError(
                    f"bad poses: {track.name} shows none of the clip: its {count} frames begin at "
                    f"second {self._starts:.2f}"
                )
            return
        step = max((b - a for a, b in pairwise(places)), default=1)
        length = max(places) + 1
        if length > count + _LENGTHS_AGREE:
            raise PoseError(
                f"bad poses: {track.name} has {count} frames, the clip at least {length}"
            )
        if self._whole and count >= length + step + _LENGTHS_AGREE:
            raise PoseError(f"bad poses: {track.name} has {count} frames, the video about {length}")


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two pictures have one shape; poses are found in pictures of any scale."""
    return abs((one[0] / one[1]) / (other[0] / other[1]) - 1) <= _SHAPES_AGREE


def _other_shape(track: PoseTrack, size: tuple[int, int], whose: str) -> str:
    width, height = track.size or (0, 0)
    return (
        f"bad poses: {track.name} is of a picture of {width} x {height}, {whose} "
        f"{size[0]} x {size[1]}: another shape"
    )


def confident(
    points: NDArray[np.float64], confidence: NDArray[np.float64], threshold: float
) -> NDArray[np.float64]:
    """Return points ``[..., 2]`` with NaN where their confidence ``[...]`` is below a threshold.

    What has no confidence at all (0 or less) is missing under any threshold.
    """
    kept = np.isfinite(confidence) & (confidence > 0) & (confidence >= threshold)
    return np.where(kept[..., None], points, np.nan)


def with_size(track: PoseTrack, size: tuple[int, int] | None) -> PoseTrack:
    """Return a track in pixels of a picture of ``size``, where the file itself does not say it."""
    return track if size is None or track.size is not None else replace(track, size=size)
