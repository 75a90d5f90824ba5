"""`accelerate launch` that ends with the status of its processes, and says their error last, once.

    python -m signfuse_dist.jobs.launcher --config_file FILE [options] -m MODULE word ...

The options are those of `accelerate launch`, which runs here. By itself it makes 1 of every status
and prints its own traceback and torchrun's account around what a process has said. Here the first
error that a process notes (:mod:`signfuse_dist.answer`) is printed at the end, and its status is
that of the launcher. Nothing that was started is left behind.
"""

from __future__ import annotations

from signfuse_dist.garbage import importing

with importing():
    import logging
    import os
    import signal
    import subprocess
    import sys
    import tempfile
    from collections.abc import Iterator, Sequence
    from contextlib import contextmanager
    from pathlib import Path

    import psutil
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from signfuse_dist.answer import ERROR_FILE, NotedError, answer
    from signfuse_dist.engine.stopping import HUNG
    from signfuse_dist.errors import MachineError, UserError, printable
    from signfuse_dist.jobs.local import end_processes

# What torchrun says of an end that is told here in a line: the formats of its messages.
_TOLD_HERE = {
    "torch.distributed.elastic.multiprocessing.api": (
        "Sending process %s closing signal %s",
        "failed (exitcode: %s) local_rank: %s (pid: %s) of binary: %s",
    ),
    "torch.distributed.elastic.agent.server.api": (
        "Received %s death signal, shutting down workers",
    ),
}
_KILLED = "Where memory was short (dmesg says so), ask for less at once (train.micro_batch_size)"


def main(words: Sequence[str] | None = None) -> int:
    """Launch what the command line says; return the status of the first process that failed."""
    words = sys.argv[1:] if words is None else words
    return answer(lambda: _run(words))


def _run(words: Sequence[str]) -> int:
    options = launch_command_parser().parse_args(words)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # `signfuse train` decides what ctrl-C does; torchrun would take it for itself.
        options.signals_to_handle = "SIGTERM,SIGHUP,SIGQUIT"
    _let_be_told_here()
    with _error_file() as note, _none_left():
        try:
            launch_command(options)
        except ChildFailedError as e:
            rank, failure = _cause(e)
            return _end(NotedError.read(note), failure.exitcode, f"process {rank}")
        except subprocess.CalledProcessError as e:
            return _end(NotedError.read(note), e.returncode, "process 0")
        except SignalException as e:
            return 128 + e.sigval
        except OSError as e:
            raise MachineError(f"{_said(e)}: nothing was started") from e
        except (ValueError, TypeError, KeyError, AttributeError, ImportError) as e:
            # Of the checks that Accelerate makes of a launch file, and of what it forgot to check.
            raise UserError(
                f"--launch {options.config_file}: Accelerate starts nothing with it: {_said(e)}; "
                "see launch/"
            ) from e
        except RuntimeError as e:  # of torchrun: a port, or a node that does not come
            raise MachineError(f"torchrun started nothing: {_said(e)}") from e
    return 0


@contextmanager
def _error_file() -> Iterator[Path]:
    """Give the file in which processes that are started in the block note the first error."""
    with tempfile.TemporaryDirectory(prefix="signfuse-launch-") as folder:
        note = Path(folder) / "error.json"
        os.environ[ERROR_FILE] = str(note)
        try:
            yield note
        finally:
            del os.environ[ERROR_FILE]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _let_be_told_here() -> None:
    """Keep torchrun from saying what this module says."""
    for name, formats in _TOLD_HERE.items():
        logging.getLogger(name).addFilter(_Without(formats))


class _Without(logging.Filter):
    """Lets through what has none of these formats."""

    def __init__(self, formats: Sequence[str]) -> None:
        super().__init__()
        self._formats = formats

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg not in self._formats


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return the process that failed first, and how; of several, one that was killed.

    The others end because it is gone, within the same second.
    """
    first = min(failure.timestamp for failure in error.failures.values())
    early = [(r, f) for r, f in error.failures.items() if f.timestamp <= first + 1]
    killed = [(r, f) for r, f in early if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    return (killed or early)[0]


def _end(noted: NotedError | None, status: int, process: str) -> int:
    """Say why the processes ended, unless one has said so itself; return the status."""
    if status < 0:
        name = signal.Signals(-status).name
        more = f". {_KILLED}" if status == -signal.SIGKILL else ""
        _say(f"{process} was killed by {name}; the same command goes on{more}")
        return 128 - status
    if noted is not None:
        where = f"{noted.process} failed, its traceback stands above: " if noted.is_fault else ""
        _say(where + noted.said)
        return noted.status
    if status == HUNG:
        _say("a process died or hung, and is named above; the same command goes on")
    elif status == 1:
        _say(f"{process} ended with status 1; what it said stands above")
    return status


def _say(error: str) -> None:
    sys.stdout.flush()
    print(f"error: {printable(error, several_lines=True)}", file=sys.stderr, flush=True)


@contextmanager
def _none_left() -> Iterator[None]:
    """End, at the end of the block, what it has started; TERM ends the block.

    torchrun ends its processes, and sets a handler of its own for that. The launcher of a single
    process leaves it behind.
    """

    def end(number: int, frame: object) -> None:
        raise SignalException(f"{signal.Signals(number).name}", signal.Signals(number))

    others = set(psutil.Process().children(recursive=True))
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        started = psutil.Process().children(recursive=True)
        end_processes([process for process in started if process not in others])
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
