"""Units of work, done by several tasks at once: training each stage's run, scoring each last one.

Tasks share nothing but the file system: who holds the lock of a unit's folder works at it, and a
unit is done when what it makes is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from signfuse_dist.ablation.runs import AblationPlan, StageRun
from signfuse_dist.engine.stopping import JOB_FOLDER, STOP
from signfuse_dist.errors import UserError
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.jobs.local import Launch, launch_command
from signfuse_dist.run_folder import RunFolder

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_WAITING = 5.0  # between looks at what other tasks do
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Unit:
    """A command that makes something: ``is_done`` says whether it is there.

    ``folder`` takes the lock and the log, ``needs`` are the names of units before it. A trainer
    stops when the file of its job asks it to; other commands are sent ctrl-C.
    """

    name: str
    command: tuple[str, ...]
    is_done: Callable[[], bool]
    folder: Path
    needs: tuple[str, ...] = ()
    is_trainer: bool = False

    @property
    def log(self) -> Path:
        """What the command printed, each start after the one before."""
        return self.folder / f"{self.name.rpartition('/')[2]}.log"


@dataclass
class _Running:
    unit: Unit
    process: subprocess.Popen[bytes]
    lock: int
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class WorkDone:
    """What became of the units: ``elsewhere`` are left to other tasks, ``stopped`` was asked."""

    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]
    stopped: bool


class UnitRunner:
    """Does units, ``parallel`` at once, beginning with every ``num_tasks``-th."""

    def __init__(self, units: Sequence[Unit], parallel: int, task_id: int, num_tasks: int) -> None:
        """Take units in an order in which each comes after what it needs."""
        if parallel < 1:
            raise UserError(f"--parallel {parallel}: at least one run at once is needed")
        if num_tasks < 1 or not 0 <= task_id < num_tasks:
            raise UserError(f"task {task_id} of {num_tasks}: must be from 0 to the number less 1")
        self._units = {unit.name: unit for unit in units}
        own = [name for i, name in enumerate(self._units) if i % num_tasks == task_id]
        self._pending = [*own, *(name for name in self._units if name not in own)]
        self._parallel, self._alone = parallel, num_tasks == 1
        self._running: list[_Running] = []
        self._failed: dict[str, str] = {}
        self._stopping = False
        self._job_folder = Path()

    def run(self) -> WorkDone:
        """Work until nothing is left for this task; a failed unit does not stop the others."""
        with tempfile.TemporaryDirectory() as own, self._signals():
            # Within a job, its batch script asks for a stop through this folder as well.
            self._job_folder = Path(os.environ.get(JOB_FOLDER, own))
            while self._running or (self._pending and not self._stopping):
                self._heed()
                self._reap()
                self._drop_done()
                busy = self._start_some()
                if self._running:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                elif busy and not self._stopping:
                    if self._is_surplus(busy):
                        break
                    self._say(f"waiting for {', '.join(busy)}, which another task works on")
                    time.sleep(SECONDS_WAITING)
        self._drop_done()
        return WorkDone(tuple(self._failed), tuple(self._pending), self._stopping)

    def _start_some(self) -> list[str]:
        """Start what can be; return the units that others are at."""
        busy: list[str] = []
        for name in list(self._pending):
            if self._stopping or len(self._running) >= self._parallel:
                break
            unit = self._units[name]
            if not all(self._units[need].is_done() for need in unit.needs):
                continue
            lock = take_lock(unit)
            if lock is None:
                busy.append(name)
            elif unit.is_done():  # since the last look
                os.close(lock)
            else:
                self._start(unit, lock)
        return busy

    def _start(self, unit: Unit, lock: int) -> None:
        with unit.log.open("ab") as log:
            process = subprocess.Popen(
                unit.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=(lock,),
                start_new_session=True,
                env={**os.environ, JOB_FOLDER: str(self._job_folder)},
            )
        self._pending.remove(unit.name)
        self._running.append(_Running(unit, process, lock))
        self._say(f"{unit.name}: started")

    def _reap(self) -> None:
        """Look at the processes that have ended."""
        for running in [r for r in self._running if r.process.poll() is not None]:
            self._running.remove(running)
            os.close(running.lock)
            unit, status = running.unit, running.process.returncode
            seconds = time.monotonic() - running.started
            if unit.is_done():
                self._say(f"{unit.name}: done in {seconds:.0f} s")
            elif self._stopping:
                self._pending.append(unit.name)
                self._say(f"{unit.name}: stopped after {seconds:.0f} s")
            else:
                self._fail(unit.name, f"ended with status {status}; {unit.log}:\n{_tail(unit.log)}")

    def _fail(self, name: str, why: str) -> None:
        """Give a unit up, and every unit that needs it."""
        self._failed[name] = why
        self._say(f"{name}: {why}")
        for other in [n for n in self._pending if name in self._units[n].needs]:
            self._pending.remove(other)
            self._fail(other, f"not begun, for {name} failed")

    def _drop_done(self) -> None:
        self._pending = [name for name in self._pending if not self._units[name].is_done()]

    def _is_surplus(self, busy: Sequence[str]) -> bool:
        """Whether the others, each going on with one row, need no further task.

        Rows that nobody is at become free only when a unit they share is done; whoever does it
        takes one of them. The only task is never surplus: what it waits for has lost its task.
        """
        if self._alone:
            return False
        needed = {need for name in self._pending for need in self._units[name].needs}
        last = [name for name in self._pending if name not in needed]
        return len(last) <= len(busy)

    def _say(self, text: str) -> None:
        left = len(self._pending) + len(self._running)
        print(f"[{len(self._units) - left}/{len(self._units)}] {text}", flush=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let ctrl-C, TERM and USR1 stop what runs at the end of its step."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = [signal.signal(number, self._stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        JobFolder(self._job_folder).ask_stop()

    def _heed(self) -> None:
        """Look whether a stop was asked for, by a signal or by the job's batch script."""
        if self._stopping or not (self._job_folder / STOP).exists():
            return
        self._stopping = True
        for running in self._running:
            if not running.unit.is_trainer and running.process.poll() is None:
                running.process.send_signal(signal.SIGINT)


def take_lock(unit: Unit) -> int | None:
    """Return the descriptor that holds the unit's lock, or None when another process holds it."""
    unit.folder.mkdir(parents=True, exist_ok=True)
    path = unit.folder / f".{unit.log.name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as e:
        os.close(lock)
        raise UserError(
            f"{path}: this file system gives no locks ({e.strerror}); choose train.output=FOLDER "
            "on one that does"
        ) from e
    os.ftruncate(lock, 0)
    os.write(lock, f"{socket.gethostname()} {os.getpid()}\n".encode())
    return lock


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line.rpartition(chr(13))[2]}" for line in lines[-_SHOWN_LINES:])


def scores_file(run: StageRun, split: str) -> Path:
    """Return where the scores of a last stage's run are."""
    return RunFolder(run.folder).evaluation(split).scores


def make_units(plan: AblationPlan, launch: Launch) -> list[Unit]:
    """Return the plan's units, each row's after another's, each after what it needs."""
    units: dict[str, Unit] = {}
    for final in plan.finals():
        for run in final.chain():
            if run.key not in units:
                units[run.key] = _training(plan, run, launch)
        scoring = _scoring(plan, final, launch)
        units[scoring.name] = scoring
    return list(units.values())


def link_all(plan: AblationPlan) -> None:
    """Put each run's earlier stages beside it."""
    for run in plan.stage_runs():
        run.link_stages()


def _training(plan: AblationPlan, run: StageRun, launch: Launch) -> Unit:
    arguments = [plan.experiment, *run.overrides]
    command = _command(launch, "signfuse_dist.train", arguments)
    needs = (run.before.key,) if run.before else ()
    return Unit(
        run.key, command, lambda: run.is_done, Path(run.run.train.output), needs, is_trainer=True
    )


def _scoring(plan: AblationPlan, run: StageRun, launch: Launch) -> Unit:
    # The other controls would decode the split again for every row.
    arguments = ["evaluate", str(run.folder), "--split", plan.split, "--controls", "shuffled"]
    command = _command(launch, "signfuse_dist.cli", arguments)
    path = scores_file(run, plan.split)
    folder = Path(run.run.train.output)
    return Unit(f"{run.key}/evaluate-{plan.split}", command, path.is_file, folder, (run.key,))


def _command(launch: Launch, module: str, arguments: list[str]) -> tuple[str, ...]:
    # A port of its own for each, for several run at once.
    return tuple(launch_command(launch, module, arguments, "--main_process_port", "0"))


def share_cores(parallel: int) -> None:
    """Give runs that share the cores one thread a process, unless the environment says another."""
    if parallel > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
