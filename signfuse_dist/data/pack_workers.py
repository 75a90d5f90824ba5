"""Shards as units of work, made in processes that may die.

Which rows a shard holds depends on the corpus and on ``clips_per_shard`` alone, never on workers
or tasks, and its bytes depend on its rows and the packing alone. So a shard that was open when a
process died is made again, all others are kept, and the files end the same.

The pool is kept by hand: concurrent.futures gives up all work when one process dies and does not
say which task it had. Here each process says what it is at, so that a death has a name.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from signfuse_dist.answer import ctrl_c_held_back, ignore_ctrl_c
from signfuse_dist.corpora import ClipRow, Rejected
from signfuse_dist.data.finished import PackError, ShardTask, find_shard
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    Packing,
    ShardIndex,
    index_name,
)
from signfuse_dist.data.pack_summary import commonest_reason
from signfuse_dist.data.shard import Encoded, write_shard
from signfuse_dist.errors import MachineError, UserError, printable
from signfuse_dist.files import remove_leftovers
from signfuse_dist.progress import Progress
from signfuse_dist.system_errors import machine_error, machine_fault, refuse_machine, what_helps

_FEW_SHARDS = 16  # a worker: the last shard of more is less than a sixteenth of its time
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
        if workers < 0:  # nobody would ever work
            raise UserError(f"--workers {workers}: must be 0 or more")
        self._function, self._workers, self._on_report = function, workers, on_report

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[int, Result | Death], None, None]:
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
        worker = _Worker(*start_process(self._function), number)
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
            return Death(worker.at, how_ended(worker.process.exitcode))
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


def how_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"


def start_process(function: Callable[[Any, Report], Any]) -> tuple[Any, Connection]:
    """Start a process that does tasks, and return it with the pipe that gives them to it.

    Ctrl-C is for this process, which ends the other; it does not reach that one even while it
    imports what ``function`` needs.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_do_tasks, args=(theirs, function), daemon=True)
    resource_tracker.ensure_running()  # started by the line after, it would let ctrl-C through
    with ctrl_c_held_back():
        process.start()
    theirs.close()
    return process, ours


def _do_tasks(connection: Connection, function: Callable[[Any, Report], Any]) -> None:
    """Do tasks until the parent closes the pipe or is gone."""
    ignore_ctrl_c()
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


class ClipError(UserError):
    """A clip stands in the way of its whole shard; the message names it."""


class Encoder(Protocol):
    """What turns a row into what is stored of it. Handed to worker processes: picklable."""

    @property
    def packing(self) -> Packing: ...
    @property
    def pose_seconds(self) -> float:
        """Time spent inside the pose model so far."""
        ...

    def encode(self, row: ClipRow) -> Encoded | Rejected:
        """Return the clip, or why its row is dropped. Raises ClipError and MachineError."""
        ...


@dataclass(frozen=True)
class Division:
    """How the work is divided: over processes here, and over tasks such as those of an array job.

    Task ``task_id`` (from 0) of ``num_tasks`` makes every ``num_tasks``-th shard. ``workers``
    processes each make whole shards (0: in this process).
    """

    workers: int = field(default=1, metadata={"help": "processes (default: %(default)s)"})
    task_id: int = field(
        default=0,
        metadata={"help": "which of several tasks this is, from 0 (default: %(default)s)"},
    )
    num_tasks: int = field(
        default=1,
        metadata={
            "help": "tasks that share the work, such as those of an array job "
            "(default: %(default)s)"
        },
    )

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise PackError(f"workers {self.workers}: must be 0 or more")
        if self.num_tasks < 1 or not 0 <= self.task_id < self.num_tasks:
            task = f"task {self.task_id} of {self.num_tasks}"
            raise PackError(f"{task}: must be from 0 to the number of tasks - 1")


@dataclass(frozen=True)
class ShardResult:
    """A shard that is finished, and where the time for it went (seconds)."""

    index: ShardIndex
    skipped: bool
    seconds: float
    pose_seconds: float
    failure: str
    """The first clip at which the extractor failed, and what it said; "" for none."""
    damage: str = ""
    """What was wrong with the shard that was there and was made again; "" where none was."""


@dataclass(frozen=True)
class ShardStop:
    """A shard that cannot be made, and why."""

    what: str
    machine: bool = False
    """True where the others would fail as well: no row of the shard is to blame."""


def make_shards(
    tasks: Sequence[ShardTask],
    out: Path,
    encoder: Encoder,
    division: Division,
    retry_dropped: bool = False,
) -> list[ShardResult]:
    """Make this task's share of the shards in ``out``, or find them whole.

    With ``retry_dropped`` whole shards with rows that were dropped are made again, too.

    Raises :class:`PackError` when a worker process died or a clip stood in the way of its shard,
    after all other shards are done; :class:`~signfuse_dist.errors.MachineError` when the machine
    failed, at once.
    """
    own = longest_first(tasks[division.task_id :: division.num_tasks], division.workers)
    names = {name for t in own for name in (t.name, index_name(t.name))}
    remove_leftovers(out, names)
    results: list[ShardResult] = []
    stops: list[str] = []
    clips = sum(len(task.rows) for task in own)
    with Progress(f"packing {out.name}", clips, "clip") as progress:
        pool: WorkerPool[ShardTask, ShardResult | ShardStop] = WorkerPool(
            partial(make_shard, out=out, encoder=encoder, retry_dropped=retry_dropped),
            min(division.workers, len(own)),
            lambda _, finished: progress.advance(finished),
        )
        try:
            with closing(pool.run(own)) as outcomes:
                for number, outcome in outcomes:
                    if isinstance(outcome, ShardResult):
                        results.append(outcome)
                        _warn_of_first(results, progress)
                    elif isinstance(outcome, ShardStop) and outcome.machine:
                        raise MachineError(f"{own[number].name}: {outcome.what}")
                    else:
                        stops.append(f"{own[number].name}: {_words(outcome)}")
        except (OSError, MemoryError, MachineError) as error:
            remove_leftovers(out, names)  # of workers that were ended: they fill a full disk
            refuse_machine(error, out)
            raise
    if stops:
        raise PackError(
            "\n".join([*stops, "all other shards are done; run the same command to try again"])
        )
    return results


def longest_first(tasks: Sequence[ShardTask], workers: int) -> Sequence[ShardTask]:
    """Return the shards in the order in which ``workers`` processes end together.

    The longest come first, so that none is begun when the others are about to end. How long one
    takes is told by its clips' seconds, or, where rows do not give them, by the bytes of their
    files. With many shards a worker the order saves nothing, and no file is looked at.
    """
    if not 1 < workers < len(tasks) <= _FEW_SHARDS * workers:
        return tasks
    rows = [row for task in tasks for row in task.rows]
    timed = all(row.end is not None for row in rows)
    expected = {
        task.name: sum(_seconds(row) if timed else _bytes(row) for row in task.rows)
        for task in tasks
    }
    return sorted(tasks, key=lambda task: expected[task.name], reverse=True)


def _seconds(row: ClipRow) -> float:
    return (row.end or 0.0) - (row.start or 0.0)


def _bytes(row: ClipRow) -> float:
    try:
        return row.named_file.stat().st_size
    except OSError:  # the clip's own encoding says what is wrong with its file
        return 0


def _warn_of_first(results: Sequence[ShardResult], progress: Progress) -> None:
    """Say at once why all rows of the first shard fail: the others may fail alike for hours."""
    index = results[0].index
    if len(results) == 1 and not index.samples and len(index.dropped) > 1:
        why = printable(commonest_reason(index.dropped))
        progress.print(f"{index.shard}: none of its rows could be packed: {why}", sys.stderr)


def _words(outcome: Death | ShardStop) -> str:
    if isinstance(outcome, ShardStop):
        return outcome.what
    at = f"at clip {outcome.at}" if outcome.at else "before its first clip"
    return f"a worker process died ({outcome.how}) {at}"


def make_shard(
    task: ShardTask, report: Report, out: Path, encoder: Encoder, retry_dropped: bool = False
) -> ShardResult | ShardStop:
    """Make one shard, or leave it as it is when it is whole already.

    A set of which a shard is made again is unfinished for that time: its manifest goes first.
    """
    began, pose_began = time.perf_counter(), encoder.pose_seconds
    failures: list[str] = []
    try:
        index, damage = find_shard(out, task, encoder.packing)
        skipped = index is not None and not (retry_dropped and index.dropped)
        if index is None or not skipped:
            (out / MANIFEST_NAME).unlink(missing_ok=True)
            clips = _clips(task, report, encoder, failures)
            index = write_shard(out / task.name, clips, encoder.packing)
        else:
            report("", len(task.rows))
    except ClipError as error:
        return ShardStop(str(error))
    except (MachineError, MemoryError) as error:
        return ShardStop(str(machine_error(error, out / task.name)), machine=True)
    except OSError as error:
        if machine_fault(error):
            return ShardStop(str(machine_error(error, out / task.name)), machine=True)
        raise PackError(
            f"{out / task.name}: cannot be written ({error.strerror}); {what_helps(error)}, then "
            "run the same command again: what is finished is kept"
        ) from error
    seconds, pose_seconds = time.perf_counter() - began, encoder.pose_seconds - pose_began
    failure = failures[0] if failures else ""
    return ShardResult(index, skipped, seconds, pose_seconds, failure, damage)


def _clips(
    task: ShardTask, report: Report, encoder: Encoder, failures: list[str]
) -> Iterator[Encoded | Rejected]:
    for row in task.rows:
        report(f"{row.id!r} (row {row.row}, {row.source})", 0)
        clip = encoder.encode(row)
        if not isinstance(clip, Rejected) and clip.failure:
            failures.append(f"{row.id}: {clip.failure}")
        yield clip
        report("", 1)
