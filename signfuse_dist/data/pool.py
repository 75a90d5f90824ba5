"""Worker processes that may die: each says what it is at, so that a death has a name.

concurrent.futures gives up all work when one process dies and does not say which task it had.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from signfuse_dist.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[str, int], object]
"""Called by a task with the name of what it begins and how many pieces it has just finished."""


@dataclass(frozen=True)
class Death:
    """A worker process ended in the middle of a task."""

    at: str
    """What it last said it was at."""
    how: str


@dataclass
class _Worker:
    process: Any
    connection: Connection
    number: int
    at: str = ""


class WorkerPool(Generic[Task, Result]):
    """Runs ``function(task, report)`` over tasks in spawned processes, in whatever order.

    ``function`` must be picklable and is sent to each process once. With ``workers`` 0 the tasks
    run in this process, one after the other.
    """

    def __init__(
        self, function: Callable[[Task, Report], Result], workers: int, on_report: Report
    ) -> None:
        self._function, self._workers, self._on_report = function, workers, on_report

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Death]]:
        """Yield each task's number with its result, or with the :class:`Death` that ended it.

        An exception in a task ends all workers and is raised here.
        """
        if self._workers == 0:
            for number, task in enumerate(tasks):
                yield number, self._function(task, self._on_report)
            return
        waiting = list(enumerate(tasks))[::-1]
        busy: list[_Worker] = []
        try:
            while waiting or busy:
                while waiting and len(busy) < self._workers:
                    busy.append(self._start(*waiting.pop()))
                for worker in self._ready(busy):
                    outcome = self._hear(worker)
                    if outcome is None:
                        continue
                    yield worker.number, outcome
                    if isinstance(outcome, Death) or not waiting:
                        busy.remove(worker)
                        _end(worker)
                    else:
                        _give(worker, *waiting.pop())
        finally:
            for worker in busy:
                worker.process.terminate()
                _end(worker)

    def _start(self, number: int, task: Task) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, number)
        _give(worker, number, task)
        return worker

    @staticmethod
    def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
        ready = wait([worker.connection for worker in busy])
        return [worker for worker in busy if worker.connection in ready]

    def _hear(self, worker: _Worker) -> Result | Death | None:
        """Take one message of a worker; None when its task goes on."""
        try:
            kind, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            return Death(worker.at, _how(worker.process.exitcode))
        if kind == "report":
            name, finished = value
            worker.at = name or worker.at
            self._on_report(name, finished)
            return None
        if kind == "raised":
            raise value
        result: Result = value
        return result


def _give(worker: _Worker, number: int, task: object) -> None:
    worker.number, worker.at = number, ""
    try:
        worker.connection.send(task)
    except (BrokenPipeError, ConnectionResetError):
        worker.at = ""  # it is dead, which the next reading of its pipe will tell


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.join()


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"


def _serve(connection: Connection, function: Callable[[Any, Report], Any]) -> None:
    """Do tasks until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the parent, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            _answer(connection, function, connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(connection: Connection, function: Callable[[Any, Report], Any], task: Any) -> None:
    def report(name: str, finished: int) -> None:
        connection.send(("report", (name, finished)))

    try:
        result = function(task, report)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except (UserError, OSError) as error:
        connection.send(("raised", error))
    except Exception:
        connection.send(("raised", RuntimeError(traceback.format_exc())))
    else:
        connection.send(("done", result))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
