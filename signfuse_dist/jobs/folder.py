"""The folder of one job, through which the batch script and the trainers speak.

Between the two stand srun and the launcher, which turn every exit status into 1 and die of USR1.
Files get through:

- ``stop``: the batch script asks for a checkpoint and an end;
- ``status.json``: what the trainer is doing, or how it ended;
- ``failure.json``: the first error that a process of the attempt met;
- ``run_folders``: every run folder that was trained, one a line;
- ``attempts.json``: see :mod:`signfuse_dist.jobs.batch`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from signfuse_dist.engine.checkpoint_files import list_checkpoints, step_of
from signfuse_dist.engine.stopping import JOB_FOLDER, REQUEUE, STOP
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.files import read_json, read_text, write_text
from signfuse_dist.run_folder import RunFolder
from signfuse_dist.system_errors import at_path
from signfuse_dist.writer import temporary_beside

State = Literal["starting", "training", "stopped", "finished"]
Kind = Literal["finished", "stopped", "refused", "failed"]


@dataclass(frozen=True)
class JobEnd:
    """How an attempt ended, and why in words."""

    kind: Kind
    why: str


class JobFolder:
    """Reads and writes the files of one job; without a folder nobody listens, nothing is written.

    The batch script calls ``clear``, ``ask_stop``, ``end_of_attempt`` and ``newest_step``; the
    trainer ``begin``, ``take_steps``, ``end`` and ``failures_named``.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> JobFolder:
        """Return the folder of the job that this process belongs to."""
        name = os.environ.get(JOB_FOLDER)
        return cls(Path(name) if name else None)

    def clear(self) -> None:
        """Forget the attempt before; run folders and attempts stay."""
        assert self._path is not None
        self._path.mkdir(parents=True, exist_ok=True)
        for name in (STOP, "status.json", "failure.json"):
            (self._path / name).unlink(missing_ok=True)

    def ask_stop(self) -> None:
        """Ask the trainer for a checkpoint and an end."""
        assert self._path is not None
        (self._path / STOP).touch()

    @contextmanager
    def asking(self, *numbers: int) -> Iterator[None]:
        """Let these signals ask for a stop while the block runs."""
        before = {n: signal.signal(n, lambda *_: self.ask_stop()) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self, run_folder: Path) -> None:
        """Say that a run is being started; the main process calls this."""
        if self._path is None:
            return
        path = self._path / "run_folders"
        with at_path(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{run_folder.resolve()}\n")
        self._write_state("starting")

    def take_steps(self) -> None:
        """Say that steps are taken from here on, after which a stop is heeded; as ``begin``."""
        if self._path is not None:
            self._write_state("training")

    def end(self, *, finished: bool) -> None:
        """Say how training ended, once the checkpoint is on the disk; the main process does."""
        if self._path is not None:
            self._write_state("finished" if finished else "stopped")

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """Note an error that passes through, unless another process met one before."""
        try:
            yield
        except Exception as e:
            if self._path is not None:
                self._note(e)
            raise

    @property
    def heeds_stop(self) -> bool:
        """Whether the run that was begun last takes steps, and so writes a checkpoint at a stop."""
        return self._read("status.json").get("state") == "training"

    @property
    def stopped(self) -> bool:
        """Whether the last run that was begun ended because a stop was asked for."""
        return self._read("status.json").get("state") == "stopped"

    def newest_step(self) -> int:
        """Return the steps that are safe: of the newest checkpoint, summed over run folders."""
        if self._path is None or not (self._path / "run_folders").exists():
            return 0
        lines = read_text(self._path / "run_folders").splitlines()
        return sum(newest_checkpoint(RunFolder(Path(line)).checkpoints) for line in set(lines))

    def end_of_attempt(self, status: int) -> JobEnd:
        """Return how the attempt ended, whose command ended with exit status ``status``."""
        if status == 0:
            return JobEnd("finished", "finished")
        failure = self._read("failure.json")
        # Of several runs at once the last to speak may be one that had finished in time.
        heeded = self._path is not None and (self._path / STOP).exists() and not failure
        if self.stopped or heeded or (status == REQUEUE and not failure):
            return JobEnd("stopped", "stopped on request")
        if failure:
            why = f"process {failure['rank']} on {failure['host']}: {failure['error']}"
            return JobEnd("refused" if failure["user"] else "failed", why)
        killed = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return JobEnd("failed", f"{killed}; no process named an error, see the log above")

    def _note(self, error: Exception) -> None:
        assert self._path is not None
        note = {
            "rank": int(os.environ.get("RANK", "0")),
            "host": socket.gethostname(),
            "error": f"{type(error).__name__}: {error}",
            # A fault of the machine may be over at the next attempt.
            "user": isinstance(error, UserError) and not isinstance(error, MachineError),
        }
        part = temporary_beside(self._path / "failure.json")
        try:
            part.write_text(json.dumps(note), encoding="utf-8")
            os.link(part, self._path / "failure.json")  # fails where another was first
        except FileExistsError:
            pass  # what came first is the cause, and this its echo
        except OSError as e:  # must not hide the error that it would have noted
            print(f"{self._path}: no error can be noted there ({e.strerror})", file=sys.stderr)
        finally:
            part.unlink(missing_ok=True)

    def _write_state(self, state: State) -> None:
        assert self._path is not None
        write_text(self._path / "status.json", json.dumps({"state": state}))

    def _read(self, name: str) -> dict[str, Any]:
        if self._path is None or not (self._path / name).exists():
            return {}
        return dict(read_json(self._path / name))


def newest_checkpoint(folder: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 where there is none."""
    return max(map(step_of, list_checkpoints(folder)), default=0)
