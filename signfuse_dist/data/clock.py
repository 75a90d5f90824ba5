"""Which picture is on the screen at which second: windows, gaps, resampling, and the true rate.

There is one clock, the container's, in seconds from the time 0 of the file. A picture is found by
its time and never by a count times a rate, so that variable rates, late pictures and gaps come out
as a player shows them. A picture stays on the screen until the next one appears, for at most
``max_gap`` seconds.

Containers round: Matroska and FLV write whole milliseconds. ``tick`` is what a time may be off by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Generic, Protocol, TypeVar

from signfuse_dist.corpora.rows import LEAST_FPS, MOST_FPS
from signfuse_dist.errors import UserError

MAX_GAP = 2.0
"""Seconds for which a picture is held, unless something else is asked for."""
_ROUNDING = 1e-6  # seconds: far below a frame, far above the rounding of a sum of times
_NEAR = 0.1  # of the median distance: a picture that is off by less keeps the rate
_VARIABLE = 0.05  # share of the pictures that may be off by more before the rate is variable
_GAP = 0.25  # seconds; below, and below three median distances, a missing picture is no gap
_MATCHES = 1e-4  # relative: 29.97 and 30000/1001 are one rate, 29.97 and 30 are two


class VideoError(UserError):
    """A clip cannot be read as its table row asks; the message names the file and the reason."""


class Timed(Protocol):
    """A picture with its place in time, in seconds; a ``duration`` of 0 is an unknown one."""

    @property
    def time(self) -> float: ...
    @property
    def duration(self) -> float: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True)
class Window:
    """The part ``[start, end)`` of a file, in seconds from the file's time 0; None: no bound."""

    start: float | None = None
    end: float | None = None


def refuse_rate(fps: float, name: str) -> None:
    """Raise :class:`VideoError` for a rate at which nobody films a person.

    A frame of an hour would come at every step of that hour: what a file says may not decide how
    much is made of it.
    """
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise VideoError(
            f"bad rate: {name} is of {fps:g} frames a second, not {LEAST_FPS:g} to {MOST_FPS:g}"
        )


@dataclass
class Timing:
    """What the times of a clip's pictures say of its rate; they are noted while they pass."""

    declared: Sequence[float]
    """Rates that the container names, the likeliest first; the truth may be another."""
    tick: float
    """Seconds that a time may be off by, because the container rounds."""
    times: list[float] = field(default_factory=list)
    longest: float = 0.0
    """Seconds for which the picture was held that stayed longest."""

    @property
    def distances(self) -> list[float]:
        """Seconds from each picture to the next."""
        return [later - time for time, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def span(self) -> float:
        """Seconds that one picture stands for: the median distance, or what is declared."""
        distances = self.distances
        return median(distances) if distances else 1 / self.declared[0]

    @property
    def rate(self) -> float:
        """Pictures a second: the declared rate if it is true of the pictures, else the median's."""
        distances = self.distances
        if not distances:
            return self.declared[0]
        observed, error = median(distances), self.tick + _ROUNDING
        if all(abs(distance - observed) <= 2 * error for distance in distances):
            # All distances are alike but for rounding, which cancels in their sum.
            observed, error = sum(distances) / len(distances), error / len(distances)
        for rate in self.declared:
            if abs(1 / rate - observed) <= error + _MATCHES * observed:
                return rate
        return round(1 / observed, 3) if observed > 0 else self.declared[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """``variable_rate`` and ``gap``, where they are true of the pictures."""
        distances, usual = self.distances, self.span
        off = [abs(d - usual) > max(_NEAR * usual, 2 * self.tick + _ROUNDING) for d in distances]
        variable = sum(off) > _VARIABLE * len(off)
        gap = self.longest > max(3 * usual, _GAP)
        return (*(["variable_rate"] if variable else []), *(["gap"] if gap else []))


@dataclass(frozen=True)
class Shown(Generic[T]):
    """A picture and the time ``[since, until)`` within a window at which it is on the screen."""

    picture: T
    since: float
    until: float
    held: bool
    """True where the picture appeared before the window began."""


def shown(
    pictures: Iterable[T], window: Window, timing: Timing, max_gap: float, name: str
) -> Iterator[Shown[T]]:
    """Yield what is on the screen during the window, in the order of time.

    ``pictures`` begin at or before the window's start, where the file does. ``name`` is the file's
    in errors. The times of the pictures that appear in the window are noted in ``timing``. Raises
    :class:`VideoError` when the window leaves the video, when a picture would be held for more than
    ``max_gap`` seconds, and when times do not grow.
    """
    begin = -inf if window.start is None else window.start
    end = inf if window.end is None else window.end
    half = timing.tick / 2 + _ROUNDING
    held: T | None = None
    for picture in pictures:
        # Before its first picture a file shows nothing, which only a window's start can mind.
        since = picture.time if window.start is None else begin
        since = since if held is None else held.time
        if held is not None and picture.time < since - timing.tick:
            raise VideoError(
                f"damaged video: {name}, the picture after {since:.3f} s says it is of "
                f"{picture.time:.3f} s"
            )
        until = max(since, min(picture.time, end))
        longest = min(1.5 * timing.span, max(max_gap, 1.5 / LEAST_FPS))
        if until - since > max_gap and until - max(since, begin) > longest:
            raise VideoError(
                f"gap: {name} shows no new picture from {since:.2f} s to {picture.time:.2f} s, "
                f"and at most {max_gap:g} s are bridged (max_gap)"
            )
        if held is not None and picture.time > begin + half:
            timing.longest = max(timing.longest, until - since)
            yield Shown(held, max(since, begin), until, since < begin - half)
        if picture.time >= end - half:
            if held is None or picture.time <= begin + half:
                raise VideoError(f"bad time: no picture of {name} is shown before {end:g} s")
            return
        if picture.time >= begin - half:
            timing.times.append(picture.time)
        held = picture
    if held is None:
        raise VideoError(f"empty video: {name} holds no picture")
    span = min(timing.span, max(max_gap, 1 / LEAST_FPS))
    finish = held.time + max(span, min(held.duration, max_gap))
    for edge, second in (("end", window.end), ("start", begin)):
        allowed = timing.span + timing.tick if edge == "end" else -half
        if second is not None and second > finish + allowed:
            raise VideoError(
                f"bad time: {edge} {second:g} s is beyond the end of {name}, {finish:.2f} s"
            )
    timing.longest = max(timing.longest, held.duration if window.end is None else end - held.time)
    yield Shown(held, max(held.time, begin), min(end, finish), held.time < begin - half)


def as_decoded(pictures: Iterable[Shown[T]]) -> Iterator[T]:
    """Yield each picture that appears in the window, once, at whatever distances they come.

    A window in which none appears holds the one that is on the screen.
    """
    held: T | None = None
    for one in pictures:
        if one.held:
            held = one.picture
            continue
        held = None
        yield one.picture
    if held is not None:
        yield held


def resampled(pictures: Iterable[Shown[T]], fps: float, timing: Timing) -> Iterator[T]:
    """Yield what is on the screen at ``fps`` equal steps a second; a picture may come repeatedly.

    The first step is at the first picture that appears in the window, so that a rate which the
    source has already changes nothing; it is at the window's start where a picture is held there
    for longer than one stands for.
    """
    begin: float | None = None
    count, last = 0, None
    for one in pictures:
        last = one.picture
        if begin is None:
            if one.held and one.until - one.since <= timing.span + timing.tick:
                continue
            begin = one.since
        while begin + count / fps < one.until - timing.tick - _ROUNDING:
            yield one.picture
            count += 1
    if not count and last is not None:
        yield last
