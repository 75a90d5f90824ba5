"""Stopping on request: TERM, USR1, ctrl-C or a file ask for a checkpoint at the end of the step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType

REQUEUE = 75  # EX_TEMPFAIL: stopped in good order, start the same command again
HUNG = 70  # EX_SOFTWARE: the status of every process of a job in which one died or hung
JOB_FOLDER = "SIGNFUSE_JOB_FOLDER"  # environment: where a job's batch script and trainers speak
STOP = "stop"  # in that folder: a stop is asked for
_SECONDS_BETWEEN_LOOKS = 1.0  # a look costs a shared file system a request


def stop_file() -> Path | None:
    """Return the file that asks the trainers of this job for a stop, None outside a job."""
    folder = os.environ.get(JOB_FOLDER)
    return Path(folder) / STOP if folder else None


class StopRequest:
    """Remembers that a stop was asked for; the loop tells the other processes.

    A context manager that restores the handlers. A second ctrl-C interrupts at once.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Look also for ``file``, at most once a second; one process of a job is enough."""
        self._asked = False
        self._file, self._looked = file, -_SECONDS_BETWEEN_LOOKS
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for, by a signal or by the file."""
        now = time.monotonic()
        if not self._asked and self._file and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._asked = self._file.exists()
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
