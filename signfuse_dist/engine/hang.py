"""A process that dies or hangs is named, and ends the job, on every machine.

Each process has a thread that writes a beat into the job's store: a counter, what the main thread
does and for how long. Two things are looked at:

- by the process itself: its main thread does one thing for too long;
- by the process before it: its beat does not change. It was killed or frozen, or its machine is
  gone.

Who finds something reads the beats of all, names who is to blame and leaves that verdict in the
store. Every process that still lives finds it, writes down what its threads do, and ends. No GPU is
waited for and no clock of another machine is compared.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

from signfuse_dist.errors import UserError
from signfuse_dist.run_folder import RunFolder

Phase = Literal[
    "starting",
    "loading clips",
    "waiting for the others",
    "first step",
    "computing",
    "saving",
    "scoring",
    "ending",
]
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


_NAMED = 8


class Beat(NamedTuple):
    """The last that is known of a process; ``silent`` where it has not changed since."""

    rank: int
    host: str
    pid: int
    number: int
    """Of the beat: it grows while the process lives."""
    phase: str
    step: int
    seconds: float
    """Since ``phase`` began, by the process's own clock."""
    ended: str = ""
    silent: bool = False


def judge(beats: Sequence[Beat], seconds: float) -> str:
    """Return who is to blame, and what the others do.

    Those who are silent; else those who do something by themselves while others wait for them,
    furthest behind; else everybody. ``seconds`` is ``train.hang_seconds``.
    """
    silent = [beat for beat in beats if beat.silent]
    # Only who stands still for about as long as the others can be what they wait for.
    stuck = [b for b in beats if b.phase != WAITING and b.seconds >= seconds / 2]
    behind = [b for b in stuck if b.step == min(other.step for other in stuck)]
    blamed = silent or behind or list(beats)
    lines = [_silent(beat) if beat.silent else _stuck(beat) for beat in blamed[:_NAMED]]
    if len(blamed) > _NAMED:
        lines.append(f"and {len(blamed) - _NAMED} more")
    others = Counter(_doing(b) for b in beats if b not in blamed)
    if others:
        said = ", ".join(f"{count} {doing}" for doing, count in others.most_common(_NAMED))
        lines.append(f"of the others: {said}")
    elif not silent and len(blamed) > 1:
        lines.append("none is ahead of the others: a collective that does not come back?")
    return "; ".join(lines)


def _silent(beat: Beat) -> str:
    what = (
        beat.ended or f"it was killed, or its machine is frozen or gone; last seen {_doing(beat)}"
    )
    return f"{_name(beat)} gives no sign of life: {what}"


def _stuck(beat: Beat) -> str:
    return f"{_name(beat)} does not get on: {_doing(beat)} for {beat.seconds:.0f} s"


def _doing(beat: Beat) -> str:
    return f"{beat.phase} (step {beat.step})" if beat.step else beat.phase


def _name(beat: Beat) -> str:
    return f"process {beat.rank} (host {beat.host}, pid {beat.pid})"


HUNG = 70  # EX_SOFTWARE: a process of the job died or hung
# Of `train.hang_seconds`: what a phase may take. The rest is for making sure and telling others.
_PATIENCE = 0.75
_LONG_PATIENCE = 15.0
_BEATS = 24  # in `train.hang_seconds`
_LONGEST_INTERVAL = 5.0  # seconds
_VERDICT = "verdict"


class Watch:
    """Watches the processes of a job while the context is entered.

    Ended with an error of its own, a process says whether another one had gone before it.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        seconds: float,
        folder: Path,
        end: Callable[[str], None],
    ) -> None:
        """Take a ``store`` of torch.distributed that nobody else waits with.

        ``seconds`` is ``train.hang_seconds``; stacks are written to ``folder``; ``end`` ends the
        process and does not return.
        """
        self.marks = Marks()
        self._store, self._rank, self._world_size = store, rank, world_size
        self._seconds, self._folder, self._end = seconds, folder, end
        self._interval = min(_LONGEST_INTERVAL, seconds / _BEATS)
        self._number, self._ended = 0, ""
        self._next_number, self._next_seen = -1, time.monotonic()
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name="watch", daemon=True)
            for target in (self._talk, self._mind_the_store)
        ]

    def __enter__(self) -> Marks:
        self._beat()
        self._await_the_others()
        self._next_seen = self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self.marks

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = "finished" if error is None else f"ended with {_line(error)}"
        self._over.set()
        self._threads[0].join(2 * self._interval)
        with contextlib.suppress(RuntimeError):  # the store may have gone with its process
            self._beat()
            if isinstance(error, RuntimeError) and not isinstance(error, UserError):
                gone = [beat for beat in self._look_twice() if beat.silent]
                if gone:
                    _write("error: before this process, " + judge(gone, self._seconds))

    def _await_the_others(self) -> None:
        """Wait for the first beat of each; raise RuntimeError naming those that do not come."""
        keys = [_key(rank) for rank in range(self._world_size)]
        try:
            self._store.wait(keys, timedelta(seconds=self._seconds))
        except RuntimeError as e:
            absent = [r for r in range(self._world_size) if not self._store.check([_key(r)])]
            raise RuntimeError(
                f"no sign of processes {absent[:8]} ({len(absent)} in all) "
                f"after {self._seconds:.0f} s"
            ) from e

    def _talk(self) -> None:
        """Beat, and look, until the context ends."""
        last = time.monotonic()
        while not self._over.wait(self._interval):
            now = time.monotonic()
            if now - last > self._seconds / 4:
                # This process stood still itself, perhaps with the whole job: nobody is late.
                self.marks.renew()
                self._next_seen = now
            last = now
            try:
                self._beat()
                self._answered = time.monotonic()
                self._look(now)
            except RuntimeError:
                continue  # the store does not answer; the other thread counts how long

    def _mind_the_store(self) -> None:
        """End the process when the store has not answered for too long."""
        last = time.monotonic()
        while not self._over.wait(self._interval):
            now = time.monotonic()
            if now - last > self._seconds / 4:
                self._answered = now
            last = now
            if now - self._answered > self._seconds * _PATIENCE:
                self._finish(
                    f"the store of the job has not answered process {self._rank} for "
                    f"{now - self._answered:.0f} s: the machine of process 0, or its launcher, is "
                    "gone"
                )

    def _look(self, now: float) -> None:
        """Look at this process and the next, as late as they are at ``now``.

        That is the time at which :meth:`_talk` found that this process had not stood still; should
        it be suspended after that, a later time would make everybody late.
        """
        if self._store.check([_VERDICT]):
            self._finish(self._store.get(_VERDICT).decode())
        mark = self.marks.last
        patience = self._seconds * (_LONG_PATIENCE if mark.phase in LONG else _PATIENCE)
        late = now - mark.since > patience
        after = self._read((self._rank + 1) % self._world_size)
        if after.number != self._next_number or after.ended == "finished":
            self._next_number, self._next_seen = after.number, now
        if late or now - self._next_seen > self._seconds * _PATIENCE:
            self._accuse(late)

    def _accuse(self, late: bool) -> None:
        """Judge by the beats of all, and end the job, unless whoever was silent is back."""
        beats = self._look_twice()
        if not late and not any(beat.silent for beat in beats):
            return
        verdict = judge(beats, self._seconds)
        self._finish(self._store.compare_set(_VERDICT, "", verdict).decode())

    def _look_twice(self) -> list[Beat]:
        """Return the beats of all, silent where they have not changed for two intervals."""
        before = [self._read(rank).number for rank in range(self._world_size)]
        time.sleep(2.5 * self._interval)
        beats = [self._read(rank) for rank in range(self._world_size)]
        return [
            beat._replace(silent=beat.ended != "finished" and beat.number == number)
            if beat.rank != self._rank
            else beat
            for beat, number in zip(beats, before, strict=True)
        ]

    def _beat(self) -> None:
        self._number += 1
        mark = self.marks.last
        beat: dict[str, Any] = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "number": self._number,
            "phase": mark.phase,
            "step": mark.step,
            "seconds": time.monotonic() - mark.since,
            "ended": self._ended,
        }
        self._store.set(_key(self._rank), json.dumps(beat))

    def _read(self, rank: int) -> Beat:
        return Beat(**json.loads(self._store.get(_key(rank))))

    def _finish(self, verdict: str) -> None:
        """Write down what this process does, let the others do the same, and end."""
        self._over.set()
        folder = RunFolder(self._folder)
        _write(
            f"error: {verdict}\nEvery process ends (this is process {self._rank}); what their "
            f"threads did is in {folder.stacks('*')}. The same command goes on from the last "
            "checkpoint. Where nothing hung and a step takes long: train.hang_seconds"
        )
        try:
            with folder.stacks(self._rank).open("w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            faulthandler.dump_traceback(2)
        time.sleep(2 * self._interval)
        self._end(verdict)


def end_process(verdict: str) -> None:
    """End this process at once: its main thread may never come back."""
    os._exit(HUNG)


def watched(seconds: float | None, folder: Path) -> contextlib.AbstractContextManager[Marks]:
    """Return the watch of this job; ``seconds`` None watches nothing."""
    if seconds is None:
        return contextlib.nullcontext(Marks())
    alone = not dist.is_initialized()
    store: Any = HashStore() if alone else _own_connection()
    rank, world_size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    return Watch(store, rank, world_size, seconds, folder, end_process)


def _own_connection() -> Any:
    """Return a connection of its own: a thread that waits must not keep the job's collectives."""
    default = dist.distributed_c10d._get_default_store()
    return PrefixStore("signfuse/watch", default.clone())


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _write(text: str) -> None:
    """Write to standard error without its lock, which a thread that hangs may hold."""
    os.write(2, f"{text}\n".encode())
