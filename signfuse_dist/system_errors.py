"""What the operating system says when it fails: the machine's fault or a file's, and what helps."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from signfuse_dist.errors import DamagedError, MachineError, UserError

_PACKAGE = Path(__file__).resolve().parent
_AWAY = "wait until the disk or mount is back"
_ROOM = "make room there"
_HANDLES = "raise the limit of open files (`ulimit -n`) or take fewer workers"
_MEMORY = "take fewer workers or ask for more memory"
# What the machine fails with, whatever the file is, and what helps.
_MACHINE_FAULTS = {
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "have it mounted for writing",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EIO: "wait until the disk or mount is back; where this one file alone cannot be read, "
    "put another copy in its place",
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.ENODEV,
            errno.ENOTCONN,
            errno.ESHUTDOWN,
            errno.ETIMEDOUT,
            errno.EREMOTEIO,
            errno.ENOLINK,
            errno.ECOMM,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.ENETRESET,
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EKEYEXPIRED,
        ),
        _AWAY,
    ),
}


_RIGHTS = "ask its owner for the right to it, or name another place"
_OTHER_PLACE = "move what is there away, or name another place"
# What a user can put right, and how.
_USER_FAULTS = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "see whether the name is right",
    errno.ENOTDIR: "a part of this path is a file and no folder: name another place",
    errno.EISDIR: "a folder has this name: name a file",
    errno.EEXIST: _OTHER_PLACE,
    errno.ENOTEMPTY: _OTHER_PLACE,
    errno.ENAMETOOLONG: "give shorter names",
    errno.ELOOP: "links lead round in a circle: name the file itself",
    errno.EXDEV: "a file cannot be renamed from one file system to another: keep both on one, "
    "without a mount or a link between them",
}
_IN_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors names what the system says


def machine_fault(error: BaseException) -> bool:
    """Return whether an error is the machine's: no memory, a full or absent disk, a limit.

    ``error`` is an :class:`OSError`, or anything with its number, as PyAV's and safetensors' errors
    have.
    """
    if isinstance(error, UserError):
        return isinstance(error, MachineError)
    return _number(error) in _MACHINE_FAULTS


def _number(error: BaseException) -> int | None:
    """Return the system's number of an error, None where it has none."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None)
    in_words = _IN_RUST.search(str(error)) if number is None else None
    return int(in_words[1]) if in_words else number


def machine_cause(error: BaseException) -> BaseException | None:
    """Return the first of an error and its causes that is the machine's, None where none is."""
    cause: BaseException | None = error
    while cause is not None and not machine_fault(cause):
        cause = cause.__cause__
    return cause


def machine_error(error: BaseException, path: object) -> MachineError:
    """Return what stops the work for a machine's fault at ``path``: the cause and what helps."""
    if isinstance(error, MachineError):
        return error
    number = _number(error)
    return stopped_at(path, _cause(error), _MACHINE_FAULTS.get(number or 0, _AWAY))


def _cause(error: BaseException) -> str:
    number = _number(error)
    if number is None:
        return str(error) or type(error).__name__
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def unreadable(error: OSError, name: object, kind: type[UserError] = UserError) -> UserError:
    """Return why what is called ``name`` cannot be read: the machine's fault, or of ``kind``.

    What may not be read is not damaged.
    """
    if machine_fault(error):
        return machine_error(error, name)
    if kind is DamagedError and isinstance(error, PermissionError):
        kind = UserError
    helps = "" if kind is DamagedError else f"; {what_helps(error)}"
    return kind(f"{name}: cannot be read ({error.strerror or error}){helps}")


def told(error: Exception, place: object = None) -> UserError:
    """Return what a user is told of an error of the system that nobody looked for.

    ``place`` is where it happened; without it, the path in the error.
    """
    cause = machine_cause(error)
    if _number(error) is None:  # raised by a program, in words of its own
        words = f"{place}: {error}" if place else str(error) or type(error).__name__
        return UserError(words) if cause is None else MachineError(f"{words}. {_step(cause)}")
    place = place or _place(error)
    if cause is not None:
        return machine_error(cause, place)
    return UserError(f"{place}: {_cause(error)}. {_step(error)}")


def what_helps(error: BaseException) -> str:
    """Return what a user can do about an error of the system, such as "make room there"."""
    return {**_USER_FAULTS, **_MACHINE_FAULTS}.get(_number(error) or 0, "put that right")


def _step(error: BaseException) -> str:
    helps = what_helps(error)
    return f"{helps[0].upper()}{helps[1:]}, then run the same command again"


def _place(error: Exception) -> str:
    """Return the paths in an error; without one, the line of this package where it was met."""
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    paths = [str(name) for name in names if isinstance(name, (str, bytes, os.PathLike))]
    if paths:
        return " -> ".join(paths)
    met = [at for at in traceback.extract_tb(error.__traceback__) if str(_PACKAGE) in at.filename]
    if not met:
        return "this process"
    return f"{Path(met[-1].filename).relative_to(_PACKAGE.parent)}, line {met[-1].lineno}"


@contextmanager
def faults_told() -> Iterator[None]:
    """Let what the system says in the block be an error for users, with its path and what helps.

    An error for users that was made of a fault of the machine is a :class:`MachineError`.
    """
    try:
        yield
    except (MachineError, BrokenPipeError):  # the pipe of whoever reads what is printed
        raise
    except UserError as error:
        cause = error.__cause__
        if cause is None or not machine_fault(cause):
            raise
        step = "" if isinstance(cause, MachineError) else f". {_step(cause)}"
        raise MachineError(f"{error}{step}") from error
    except Exception as error:
        if not isinstance(error, OSError) and not machine_fault(error):
            raise
        raise told(error) from error


@contextmanager
def at_path(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let what the system says in the block name ``path`` where it names nothing.

    Also where it names ``temporary``, or a file in it, which nobody asked for.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and (temporary is None or temporary not in _with_parents(named)):
            raise
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _with_parents(name: object) -> tuple[Path, ...]:
    path = Path(os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "")
    return (path, *path.parents)


def refuse_machine(error: Exception, path: object) -> None:
    """Raise MachineError, with ``path``, when that is what an error comes from."""
    cause = machine_cause(error)
    if cause is not None:
        raise machine_error(cause, path) from error


def stopped_at(path: object, cause: str, step: str = _AWAY) -> MachineError:
    """Return the error that says where the work stopped, why, and what to do before going on."""
    return MachineError(
        f"{path}: {cause}; no input is to blame. {step[0].upper()}{step[1:]}, then run the same "
        "command again: what is finished is kept"
    )
