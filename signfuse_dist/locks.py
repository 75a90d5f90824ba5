"""One writer a folder: who writes takes its lock, and a second writer is told who has it.

A lock is a file. Its holder has it locked by ``flock``, has written into it who it is, and touches
it every ten seconds. Neither would do alone:

- ``flock`` ends with the process, however that ends, so after SIGKILL the same command goes on at
  once. On NFS (Linux 2.6.12 and later) it holds between machines, and the server frees the lock of
  a machine that is gone after its lease (90 s in general); until then a second writer is refused.
- Some mounts give ``flock`` within one machine alone (``local_lock``, Lustre's ``localflock``), and
  some give none (Lustre's ``noflock``). There what is written decides.

So whoever gets the ``flock`` and finds something written, or can have none, asks who wrote it. A
process of this machine is looked for: by its number and the time at which it started, for numbers
are given again. One of another machine (or container) is watched for a minute on this process's own
clock, for clocks of machines differ: when the file is touched, it is held; when not, and at once
where it was last touched more than an hour ago, it was left behind. Taking over what was left
behind is said in one line. Where there is no ``flock``, two that start within the same second could
both find nothing: each looks again, a second later, whether what it wrote is still there.

What this cannot see: a machine that is frozen for more than a minute on a mount whose ``flock``
does not reach other machines loses its locks without being told.

Reading takes no lock: :func:`holder_of` looks at what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.errors import UserError, printable, shortened
from signfuse_dist.writer import Writer

BEAT = 10.0  # seconds between the touches of a holder
SILENCE = 60.0  # seconds without one after which a holder on another machine is gone
LONG_AGO = 3600.0  # seconds since the last touch for which clocks need not be compared
PATIENCE = 2.0  # seconds for a holder that was killed a moment ago, or that is ending
_DYING = 30.0  # seconds for the kernel to close the files of one that has ended
_SETTLING = 1.0  # seconds, where there is no flock
_LOOK = 0.1
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO}  # what opening a link, a folder, a socket says
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_BYTES = 65_536  # of a lock file; more is none of ours
_SHOWN = 200  # characters of a command

Say = Callable[[str], object]


class HeldError(UserError):
    """Another process writes there; the message says which, and what to do."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as it is written in its file."""

    writer: Writer
    host: str
    command: str
    since: str
    about: str = ""
    """What is written, where several may write in one folder as long as this is alike."""
    token: str = ""

    @classmethod
    def this(cls, about: str = "") -> Holder:
        """Return this process."""
        program, *words = sys.argv or [""]
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        command = shlex.join([Path(program).name, *words])
        return cls(Writer.this(), socket.gethostname(), command, since, about, uuid.uuid4().hex)

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """Return the holder that a lock file names, None where it is no lock file."""
        try:
            fields = json.loads(content)
            writer = Writer.parse(fields.pop("writer"))
            holder = cls(writer, **fields) if writer else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if holder is None or not all(isinstance(v, str) for v in fields.values()):
            return None
        return holder

    def to_bytes(self) -> bytes:
        """Return what is written into the lock file."""
        fields = {**vars(self), "writer": str(self.writer)}
        return f"{json.dumps(fields)}\n".encode()

    def __str__(self) -> str:
        command = shortened(self.command, _SHOWN)
        return printable(f"pid {self.writer.pid} on {self.host} since {self.since} ({command})")


@contextlib.contextmanager
def held(
    path: Path,
    what: str,
    *,
    patience: float | None = None,
    about: str = "",
    say: Say | None = None,
) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; its folder is made.

    Args:
        path: the lock's own file, which nothing else is written into. It is gone afterwards.
        what: what is written under the lock, as a user calls it.
        patience: seconds to wait for a holder that lives; None: for one that is ending, which are
            two.
        about: see :attr:`Holder.about`.
        say: is given the line that says what was taken over; None prints it on standard error.

    Raises :class:`HeldError` when another process writes; OSError when the folder cannot be
    written. Threads of one process are processes in this.
    """
    lock = _take(path, what, PATIENCE if patience is None else patience, about, say or _say)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Share:
    """Every ``num_tasks``-th of ``count`` pieces of a folder, from ``task_id`` on."""

    task_id: int = 0
    num_tasks: int = 1
    count: int = 0

    def overlaps(self, task_id: int, num_tasks: int) -> bool:
        """Return whether another task of as many pieces has one of these."""
        if 1 in (num_tasks, self.num_tasks):
            return True
        own = range(self.task_id, self.count, self.num_tasks)
        return any(piece % num_tasks == task_id for piece in own)


@contextlib.contextmanager
def held_share(
    folder: Path, share: Share, what: str, *, about: str, say: Say | None = None
) -> Iterator[None]:
    """Hold a task's share of the pieces of a folder: tasks whose shares do not meet work at once.

    All of them write what ``about`` says. Raises as :func:`held` does. Of two that begin within the
    same moment with other numbers of tasks and shares that meet, both may be refused.
    """
    own = _lock_of_share(folder, share.task_id, share.num_tasks)
    with held(own, what, about=about, say=say):
        for path in sorted(folder.glob(_lock_of_share(folder, "*", "*").name)):
            task = _task_of(path)
            if path == own or task is None:
                continue
            if share.overlaps(*task):
                with held(path, what, say=say):
                    pass  # nobody works at it, and its file is gone now
                continue
            holder = holder_of(path)
            if holder is not None and holder.about != about and holder.writer.lives() is not False:
                raise HeldError(_refusal(what, holder))
        yield


def _lock_of_share(folder: Path, task_id: int | str, num_tasks: int | str) -> Path:
    return folder / f".task-{task_id}-of-{num_tasks}.lock"


def _task_of(path: Path) -> tuple[int, int] | None:
    words = path.name.removesuffix(".lock").split("-")
    if len(words) != 4 or not (words[1].isdecimal() and words[3].isdecimal()):
        return None
    task_id, num_tasks = int(words[1]), int(words[3])
    return (task_id, num_tasks) if num_tasks else None


def holder_of(path: Path) -> Holder | None:
    """Return who is written in a lock file; None where nobody is, and of one known to have ended.

    Takes no lock. Of a holder on another machine this does not say whether it lives.
    """
    try:
        descriptor = os.open(path, _FLAGS | os.O_RDONLY)
    except OSError:
        return None
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        holder = Holder.parse(_read(descriptor)) if is_file else None
    finally:
        os.close(descriptor)
    return holder if holder is not None and holder.writer.lives() is not False else None


class _Lock:
    """A lock that is held: touched every ten seconds, until it is released."""

    def __init__(self, path: Path, descriptor: int, holder: Holder) -> None:
        self._path, self._descriptor, self._holder = path, descriptor, holder
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is away is named by who writes on it
                os.utime(self._descriptor)

    def release(self) -> None:
        self._over.set()
        self._beating.join()
        # A file that stays is taken over from a process that has ended.
        with contextlib.suppress(OSError):
            if _is_same(self._path, self._descriptor) and _wrote(self._path, self._holder):
                self._path.unlink()
        os.close(self._descriptor)


def _take(path: Path, what: str, patience: float, about: str, say: Say) -> _Lock:
    path.parent.mkdir(parents=True, exist_ok=True)
    began, first_touch = time.monotonic(), None
    while True:
        found = _try(path, about, say)
        if isinstance(found, _Lock):
            return found
        limit, lives = patience, found.writer.lives() if found else True
        if lives is None:  # of a machine that is gone, the server frees the lock by and by
            touch = _touched(path)
            first_touch = first_touch or touch
            limit = patience if touch != first_touch else max(patience, 2 * SILENCE)
        elif not lives:
            limit = max(patience, _DYING)
        if time.monotonic() - began >= limit:
            raise HeldError(_refusal(what, found))
        time.sleep(_LOOK)


def _refusal(what: str, holder: Holder | None) -> str:
    if holder is None:
        return (
            f"{what} is held by another process, which its lock file does not name: wait until it "
            "has finished, or end it, then run the same command again"
        )
    ended = ""
    if holder.writer.lives() is False:
        ended = ", which has ended, but not all that it started"
    return (
        f"{what} is held by {holder}{ended}: wait until it has finished, or end it, then run the "
        "same command again"
    )


def _try(path: Path, about: str, say: Say) -> _Lock | Holder | None:
    """Take the lock, or return who holds it, None where the file does not say."""
    try:
        descriptor, flocked = _open(path)
    except PermissionError:
        holder = holder_of(path)
        if holder is None:
            raise
        return holder  # of another user, whose file only that one may open for writing
    keep = False
    try:
        content = _read(descriptor)
        there = Holder.parse(content)
        if flocked is False:
            return there
        if content:
            if _is_alive(path, there, flocked is None, say):
                return there
            who = f"{there}, which has ended" if there else "nobody that its file names"
            say(f"{path.parent}: taking over the lock of {who}")
        holder = Holder.this(about)
        _write(path, descriptor, holder)
        if flocked is None:
            time.sleep(_SETTLING)
            if not _wrote(path, holder):
                return holder_of(path)
        keep = True
        return _Lock(path, descriptor, holder)
    finally:
        if not keep:
            os.close(descriptor)


def _open(path: Path) -> tuple[int, bool | None]:
    """Open a lock file, made where there is none; return whether it is locked, see _flock."""
    while True:
        try:
            descriptor = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was empty, and whoever had the lock removed it
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as e:
            if e.errno in _NO_FILE:
                raise UserError(
                    f"{path}: is to be the file of a lock, and is none: remove it"
                ) from e
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: is to be the file of a lock, and is none: remove it")
            flocked = _flock(descriptor)
            if flocked is False or _is_same(path, descriptor):
                opened, descriptor = descriptor, -1
                return opened, flocked
        finally:  # else whoever had it has removed it meanwhile
            if descriptor >= 0:
                os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    """Lock an open file; return False where another has it, None where there are no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno in _NO_FLOCK:
            return None
        raise
    return True


def _is_alive(path: Path, holder: Holder | None, no_flock: bool, say: Say) -> bool:
    """Return whether who is written in a lock file is at work, which nobody has by flock here."""
    lives = holder.writer.lives() if holder else None
    if lives is not None:
        # A copy of a lock file names one that lives; by flock it would be held.
        return lives and no_flock
    if holder is None and not no_flock:
        return False
    before = _touched(path)
    if time.time() - before / 1e9 > LONG_AGO:
        return False
    say(f"{path.parent}: locked by {holder or 'another process'}; waiting for a sign of life")
    began = time.monotonic()
    while time.monotonic() - began < SILENCE:
        time.sleep(min(1.0, SILENCE / 10))
        touch = _touched(path)
        if touch != before:
            return touch > 0
    return False


def _touched(path: Path) -> int:
    """Return when a file was last touched, in nanoseconds as its server has it; 0 without one."""
    try:
        descriptor = os.open(path, _FLAGS | os.O_RDONLY)  # NFS asks its server when one opens
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _write(path: Path, descriptor: int, holder: Holder) -> None:
    content = holder.to_bytes()
    try:
        with contextlib.suppress(PermissionError):  # of a file that another user made
            # Whoever may write in the folder may take over what was left there.
            os.fchmod(descriptor, stat.S_IMODE(path.parent.stat().st_mode) & 0o666)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, _MOST_BYTES, 0)


def _wrote(path: Path, holder: Holder) -> bool:
    there = holder_of(path)
    return there is not None and there.token == holder.token


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
