"""Reading a stranger's clip in a process of its own, which is ended when it takes too long.

A decoder that never returns, or that takes its process with it, cannot be stopped from inside. So
the clip is decoded, its joints are found and its overlay is drawn beside the process that holds the
model. The model's own work is bounded by ``data.max_frames`` and ``evaluation.max_new_tokens``,
whatever a clip holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from signfuse_dist.data.pack_workers import Report, how_ended, start_process
from signfuse_dist.errors import MachineError, UserError

Read = TypeVar("Read")

_START_SECONDS = 300.0  # for importing what a clip is read with
# Between frames a clip is given up without ending the process, which costs seconds to start again.
_GRACE_SECONDS = 2.0


class Upload(NamedTuple):
    """A clip to be read, and the file that its overlay goes to."""

    video: Path
    overlay: Path


class ReadingProcess(Generic[Read]):
    """Reads one clip after another in a process that is started again when it had to be ended."""

    def __init__(
        self, work: Callable[[Upload | None, Report], Read | str | None], most_seconds: float
    ) -> None:
        """Give each clip ``most_seconds``.

        ``work`` is what the process does, picklable: it returns a clip, or what is wrong with it;
        None is answered with None at once.
        """
        self._work, self._most = work, most_seconds
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and wait until it can read. Raises MachineError when it cannot."""
        self.close()
        self._process, self._connection = start_process(self._work)
        ended = self._ask(None, _START_SECONDS)
        if ended is not None:
            raise MachineError(f"the process that reads clips did not start: {ended}")

    def read(self, upload: Upload) -> Read:
        """Return a clip, its overlay written; raise UserError saying what is wrong with it."""
        if self._process is None or not self._process.is_alive():
            self.start()
        answer = self._ask(upload, self._most)
        if answer is None or isinstance(answer, str):
            raise UserError(str(answer))
        return answer

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _ask(self, upload: Upload | None, seconds: float) -> Read | str | None:
        """Return what the process answers, or how it ended."""
        assert self._connection is not None
        process, ended = self._process, threading.Event()

        def end() -> None:
            ended.set()
            process.kill()

        timer = threading.Timer(seconds + _GRACE_SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            self._connection.send(upload)
            kind, value = self._connection.recv()
            while kind == "report":
                kind, value = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            process.join()
            if ended.is_set():
                return (
                    f"reading the clip took longer than {seconds:g} s and was ended; use a "
                    "shorter or smaller one"
                )
            return f"the process that read the clip ended ({how_ended(process.exitcode)})"
        finally:
            timer.cancel()
        if kind == "raised":
            raise value
        answer: Read | str | None = value
        return answer
