"""How every program of this package ends: an exit status, and one message without a traceback.

The statuses are 0; 1 for faults that were looked for and found; 2 for what the user can put right;
75 for a stop, or a fault of the machine, after which the same command goes on; 130 for ctrl-C; 141
where whoever reads the output has gone.

Of several processes that one launcher started (:mod:`signfuse_dist.jobs.launcher`), the first that
meets an error writes it into the file that the environment names, and the launcher prints it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from signfuse_dist.errors import UserError, printable
from signfuse_dist.files import read_json
from signfuse_dist.system_errors import faults_told, told

INTERRUPTED = 130
ERROR_FILE = "SIGNFUSE_ERROR_FILE"  # environment: where the first error is noted for the launcher


def answer(run: Callable[[], int]) -> int:
    """Call ``run`` and return the exit status; an error of a user or of the machine is printed."""
    with _ctrl_c_noted() as interruption:
        try:
            with faults_told():
                status = int(run())
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader (`| head`) has seen enough; nothing may be flushed into it at exit.
            _leave_standard_output()
            status = 141
        except KeyboardInterrupt:
            interruption.came = True
        except Exception as error:
            # Raised in the middle of a library, ctrl-C may arrive here as another error.
            if not interruption.came:
                if not isinstance(error, (UserError, OSError)) and not _left_to_launcher(error):
                    raise
                status = _failed(error)
        if interruption.came:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            return INTERRUPTED
    return status


@dataclass
class _Interruption:
    """Whether ctrl-C was pressed."""

    came: bool = False


@contextmanager
def _ctrl_c_noted() -> Iterator[_Interruption]:
    """Remember ctrl-C, which some libraries catch, and let it do no harm once a program ends."""
    interruption = _Interruption()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interruption.came = True
        raise KeyboardInterrupt

    # Ignored where a launcher answers for its processes; only the main thread may set it.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    atexit.unregister(ignore_ctrl_c)
    atexit.register(ignore_ctrl_c)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Deliver ctrl-C that comes during the block at its end.

    A process that is started in the block has it held back until it calls :func:`ignore_ctrl_c`:
    the key reaches every process of the terminal, also one that is still importing.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def ignore_ctrl_c() -> None:
    """Let ctrl-C do nothing in this process from now on, also where it was held back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _failed(error: Exception) -> int:
    """Tell an error where that is to be done; return its status."""
    if isinstance(error, OSError):  # of the flush
        error = told(error, "standard output")
    return _refused(error) if isinstance(error, UserError) else 1


def _refused(error: UserError) -> int:
    """Print an error, after what was printed before it; return its exit status."""
    try:
        sys.stdout.flush()
        if isinstance(error.__cause__, OSError) and error.__cause__.filename is None:
            os.write(sys.stdout.fileno(), b"\n")  # who else may have failed says so again
    except OSError as full:
        if full.errno is not None:  # else a standard output that is no file
            _leave_standard_output()
            error = told(full, "standard output")
    if not _left_to_launcher(error):
        print(f"error: {printable(str(error), several_lines=True)}", file=sys.stderr)
    return error.status


@dataclass(frozen=True)
class NotedError:
    """The first error of a launcher's processes: its words, its status, and who met it."""

    said: str
    status: int
    process: str
    is_fault: bool
    """Of the program: its traceback was printed where it was met."""

    @classmethod
    def read(cls, path: Path) -> NotedError | None:
        """Return the error that was noted, None where there was none."""
        return cls(**read_json(path)) if path.exists() else None


def _left_to_launcher(error: Exception) -> bool:
    """Note an error for the launcher; return whether the first that was noted is told there.

    What comes first is the cause, and what other processes meet then its echo. A fault of the
    program is told where it is met: the launcher has no traceback of it.
    """
    name = os.environ.get(ERROR_FILE)
    if name is None:
        return False
    path, is_fault = Path(name), not isinstance(error, UserError)
    noted = NotedError(
        said=f"{type(error).__name__}: {error}" if is_fault else str(error),
        status=error.status if isinstance(error, UserError) else 1,
        process=f"process {os.environ.get('RANK', '0')} on {socket.gethostname()}",
        is_fault=is_fault,
    )
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(asdict(noted)), encoding="utf-8")
        os.link(part, path)  # fails where another was first
    except FileExistsError:
        first = NotedError.read(path)
        return first is not None and not first.is_fault
    except OSError:
        return False  # no room to note it: it is told here
    finally:
        part.unlink(missing_ok=True)
    return not is_fault


def _leave_standard_output() -> None:
    """Let what is still to be written to standard output go nowhere, now and at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
