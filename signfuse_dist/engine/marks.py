"""Where a process is: what it does, in which step, and since when."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

Phase = Literal[
    "starting", "loading clips", "waiting for the others", "first step", "computing", "saving",
    "scoring", "ending",
]  # fmt: skip
WAITING: Phase = "waiting for the others"
# What may take long and is no hang: models are read, kernels built, files written to far disks.
# Who waits does not know for what; what the others do has a limit of its own.
LONG: frozenset[Phase] = frozenset(
    {"starting", "first step", "saving", "scoring", "ending", WAITING}
)


class Mark(NamedTuple):
    """``since`` is a time of the monotonic clock, in seconds."""

    phase: Phase
    step: int
    since: float


class Marks:
    """The last mark of a process's main thread; another thread may read it at any time."""

    def __init__(self) -> None:
        self.last = Mark("starting", 0, time.monotonic())

    def at(self, phase: Phase, step: int) -> None:
        """Say that ``phase`` of step ``step`` (from 1) begins; costs next to nothing."""
        self.last = Mark(phase, step, time.monotonic())

    def renew(self) -> None:
        """Let the phase begin now: the process itself stood still."""
        self.last = self.last._replace(since=time.monotonic())
