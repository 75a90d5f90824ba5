"""Stopping on request: TERM, USR1 or ctrl-C ask for a checkpoint at the end of the step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

REQUEUE = 75  # EX_TEMPFAIL: stopped in good order, start the same command again


class StopRequest:
    """Remembers that a stop was asked for; the loop tells the other processes.

    A context manager that restores the handlers. A second ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
