"""The guard against crash loops: counts the attempts of a job that got no step further."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from signfuse_dist.files import write_text

_SILENT = "it ended without a word: the job was killed, or its node was lost"


@dataclass
class Attempt:
    """One start of a job: safe steps when it began and ended, and why it ended."""

    begun_at: int
    ended_at: int | None = None
    why: str = ""


class Attempts:
    """The starts of one job, kept in ``attempts.json``."""

    def __init__(self, folder: Path, num_allowed: int) -> None:
        """Allow ``num_allowed`` attempts in a row that get no step further."""
        self._path, self._num_allowed = folder / "attempts.json", num_allowed
        self.found: list[Attempt] = []
        if self._path.exists():
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            self.found = [Attempt(**row) for row in rows]

    def begin(self, step: int) -> None:
        """Begin another; one before that never ended is ended here, with what is safe now."""
        if self.found and self.found[-1].ended_at is None:
            self.found[-1] = Attempt(self.found[-1].begun_at, step, _SILENT)
        self.found.append(Attempt(step))
        self._write()

    def end(self, step: int, why: str) -> None:
        """End the last one."""
        self.found[-1] = Attempt(self.found[-1].begun_at, step, why)
        self._write()

    def refusal(self) -> str | None:
        """Return why the job must not be started again, or None."""
        ended = [attempt for attempt in self.found if attempt.ended_at is not None]
        last = ended[-self._num_allowed :]
        if len(last) < self._num_allowed or any(_went_on(attempt) for attempt in last):
            return None
        return (
            f"{len(last)} attempts in a row got no further than step {last[-1].ended_at}; not "
            f"requeued. The last: {last[-1].why}. Put that right and submit the same command "
            f"again: it goes on from the last checkpoint"
        )

    def _write(self) -> None:
        write_text(self._path, json.dumps([asdict(attempt) for attempt in self.found], indent=1))


def _went_on(attempt: Attempt) -> bool:
    return attempt.ended_at is not None and attempt.ended_at > attempt.begun_at
