"""A process that dies or hangs is named, and the job ends on every machine.

A thread of each process writes a beat into the job's store: a counter, what the main thread does,
for how long. It accuses the next process when that one takes too long or its beat stands still. All
find the verdict in the store, write their stacks and end. Time is counted in looks, not by a clock:
a job that was suspended is not late. docs/log.md says why this is not torch's `monitored_barrier`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from signfuse_dist.engine.stopping import HUNG
from signfuse_dist.engine.timing import QUICK, WAITING, Marks
from signfuse_dist.errors import UserError
from signfuse_dist.run_folder import RunFolder

_PATIENCE, _LONG_PATIENCE = 0.75, 15.0  # of train.hang_seconds; the rest is for telling the others


class Beat(NamedTuple):
    """What ``process`` last said of itself; ``number`` grows while it lives."""

    process: str
    number: int
    phase: str
    step: int
    seconds: float
    ended: str = ""
    silent: bool = False

    def __str__(self) -> str:
        doing = f"{self.phase} (step {self.step})" if self.step else self.phase
        if not self.silent:
            return f"{self.process} does not get on: {doing} for {self.seconds:.0f} s"
        gone = f"it was killed, or its machine is frozen or gone; last seen {doing}"
        return f"{self.process} gives no sign of life: {self.ended or gone}"


def judge(beats: list[Beat], seconds: float) -> str:
    """Name those who are silent; else those who take long and wait for nobody; else all."""
    slow = [beat for beat in beats if beat.phase != WAITING and beat.seconds >= seconds / 2]
    blamed = [beat for beat in beats if beat.silent] or slow or beats
    return f"{len(blamed)} of {len(beats)} processes: " + "; ".join(map(str, blamed[:8]))


class Watch:
    """Watches the processes of a job while the context is entered; gives the marks to be set."""

    end = staticmethod(os._exit)  # at once: the main thread may never come back

    def __init__(self, store: Any, rank: int, size: int, seconds: float, folder: Path) -> None:
        """Take a store that nobody else waits with; ``seconds`` is ``train.hang_seconds``."""
        self.marks, self._rank, self._store, self._seconds = Marks(), rank, store, seconds
        self._process = f"process {rank} (host {os.uname().nodename}, pid {os.getpid()})"
        self._keys = [f"process {other}" for other in range(size)]
        self._interval, self._stacks = min(5.0, seconds / 24), RunFolder(folder).stacks(rank)
        self._ended, self._over, self._unanswered = "", threading.Event(), 0
        self._looking = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Marks:
        self._beat()
        for key in self._keys:  # the store's error names a process that does not come
            self._store.wait([key], timedelta(seconds=self._seconds))
        self._looking.start()
        threading.Thread(target=self._mind_the_store, daemon=True).start()
        return self.marks

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended = "finished" if error is None else f"ended with {error!r:.200}"
        self._over.set()
        self._looking.join(2 * self._interval)
        with suppress(RuntimeError):  # the store may have gone with its process
            self._beat()
            if isinstance(error, RuntimeError) and not isinstance(error, UserError):
                before = self._read()  # a collective that broke does not say who is gone
                time.sleep(2.5 * self._interval)
                self._beat()
                for gone in [b._replace(silent=True) for b in self._read() if b in before][:8]:
                    os.write(2, f"error: before this process, {gone}\n".encode())

    def _beat(self) -> None:
        self.marks.looks += 1
        phase, step, since = self.marks.last
        seconds = (self.marks.looks - since) * self._interval
        beat = Beat(self._process, self.marks.looks, phase, step, seconds, self._ended)
        self._store.set(self._keys[self._rank], json.dumps(beat))

    def _read(self) -> list[Beat]:
        return [Beat(*json.loads(self._store.get(key))) for key in self._keys]

    def _look(self) -> None:
        """Beat, and look at the next process, until the context ends."""
        place, number, seen = (self._rank + 1) % len(self._keys), 0, 0
        while not self._over.wait(self._interval):
            with suppress(RuntimeError):  # no answer: the other thread counts
                self._beat()
                if verdict := self._store.compare_set("verdict", "", "").decode():
                    self._finish(verdict)
                following = Beat(*json.loads(self._store.get(self._keys[place])))
                if following.number != number or following.ended == "finished":
                    number, seen = following.number, self.marks.looks
                patience = _PATIENCE if following.phase in QUICK else _LONG_PATIENCE
                silent = (self.marks.looks - seen) * self._interval > self._seconds * _PATIENCE
                if silent or following.seconds > self._seconds * patience:
                    beats = self._read()
                    beats[place] = following._replace(silent=silent)
                    verdict = judge(beats, self._seconds)  # of several, the first is heard
                    self._finish(self._store.compare_set("verdict", "", verdict).decode())
                self._unanswered = 0

    def _mind_the_store(self) -> None:
        while not self._over.wait(self._interval):
            self._unanswered += 1
            if self._unanswered * self._interval > self._seconds * _PATIENCE:
                self._finish("the job's store, its launcher or process 0's machine, is gone")

    def _finish(self, verdict: str) -> None:
        """Write down what this process does, let the others do the same, and end."""
        self._over.set()
        text = f"error: {verdict}\n{self._process} ends; its stacks: {self._stacks}. The same "
        text += "command goes on. Where nothing hung and a step takes long: train.hang_seconds\n"
        os.write(2, text.encode())  # sys.stderr has a lock, which a thread that hangs may hold
        with suppress(OSError), self._stacks.open("w") as file:
            faulthandler.dump_traceback(file)
        time.sleep(2 * self._interval)
        self.end(HUNG)


def watched(seconds: float | None, folder: Path) -> AbstractContextManager[Marks]:
    """Return the watch of this job; ``seconds`` None watches nothing."""
    if seconds is None:
        return nullcontext(Marks())
    if not dist.is_initialized():
        return Watch(dist.HashStore(), 0, 1, seconds, folder)  # type: ignore[attr-defined]
    # A connection of its own: a thread that waits must not keep the job's collectives.
    store: Any = dist.distributed_c10d._get_default_store().clone()
    store = dist.PrefixStore("signfuse/watch", store)  # type: ignore[attr-defined]
    return Watch(store, dist.get_rank(), dist.get_world_size(), seconds, folder)
