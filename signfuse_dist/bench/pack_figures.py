"""The figures of `signfuse bench pack`, and the table that is printed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RATIO_GOAL, SCALING_GOAL, POSE_SHARE_GOAL = 0.9, 1.8, 0.9


@dataclass(frozen=True)
class Run:
    """One run: its frames, and its seconds of wall and of processor time."""

    frames: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Rates:
    """Frames a second of wall and of processor time, each the best of several runs."""

    wall: float
    cpu: float

    @classmethod
    def best(cls, runs: Sequence[Run]) -> Rates:
        """Return the best rates of some runs."""
        return cls(max(r.frames / r.wall for r in runs), max(r.frames / r.cpu for r in runs))


@dataclass(frozen=True)
class Workers:
    """The same work by one worker process and by two."""

    one: Rates
    two: Rates

    @property
    def scaling(self) -> float:
        """Return two workers' frames a second over one's."""
        return self.two.wall / self.one.wall

    @property
    def cpu_scaling(self) -> float:
        """Return the same as it would be with a free core for each, from processor time."""
        return 2 * self.two.cpu / self.one.cpu


@dataclass(frozen=True)
class PoseFigures:
    """Packing with pose."""

    share: float
    """Share of the time of packing that is spent inside MediaPipe."""
    share_found: float
    """Share of the joints that it found: without a person it would do half the work."""
    workers: Workers


@dataclass(frozen=True)
class PackFigures:
    """What was measured; ``str()`` of it is the table."""

    title: str
    bare: Rates
    packing: Rates
    workers: Workers
    pose: PoseFigures | None

    @property
    def ratio(self) -> float:
        """Return packing's frames a processor second over the bare loop's."""
        return self.packing.cpu / self.bare.cpu

    def __str__(self) -> str:
        lines = [
            self.title,
            f"{'frames a second of':38}{'wall':>8}{'processor':>12}",
            _rates("bare loop", self.bare),
            _rates("packing without pose, this process", self.packing),
            *_worker_rates(self.workers),
            *(_worker_rates(self.pose.workers, " with pose") if self.pose else ()),
            f"{'ratios':38}",
            _ratio("packing to bare loop, processor", self.ratio, RATIO_GOAL),
            _ratio("  the same, wall", self.packing.wall / self.bare.wall),
            *_scalings(self.workers),
        ]
        if self.pose:
            found = f"   ({self.pose.share_found:.0%} of the joints found)"
            lines += _scalings(self.pose.workers, " with pose")
            lines.append(_ratio("time inside MediaPipe", self.pose.share, POSE_SHARE_GOAL) + found)
        return "\n".join(lines)


def _rates(name: str, rates: Rates) -> str:
    return f"  {name:36}{rates.wall:8.1f}{rates.cpu:12.1f}"


def _worker_rates(workers: Workers, which: str = "") -> list[str]:
    return [
        _rates(f"one worker{which}", workers.one),
        _rates(f"two workers{which}", workers.two),
    ]


def _scalings(workers: Workers, which: str = "") -> list[str]:
    return [
        _ratio(f"two workers to one{which}, wall", workers.scaling, SCALING_GOAL),
        _ratio("  the same, from processor time", workers.cpu_scaling),
    ]


def _ratio(name: str, value: float, goal: float | None = None) -> str:
    line = f"  {name:36}{value:8.3f}"
    if goal is None:
        return line
    return f"{line}   goal {goal}: {'met' if value >= goal else 'missed'}"
