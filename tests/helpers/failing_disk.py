"""A disk that fails under this process: the system's calls say what such a disk would say."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Call = Literal["read", "write", "rename"]
_OPENED = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_failing: list[tuple[str, Call, Path]] = []
_met: list[str] = []


@contextmanager
def failing_disk(name: str, call: Call, place: Path) -> Iterator[list[str]]:
    """Let calls of one kind at ``place``, or in that folder, raise the error ``name`` such as EIO.

    To write is to open for writing, to make a folder or to wait for what was written; to read is to
    open for reading or to list. Only what Python calls is met. Yields what was met.
    """
    _met.clear()
    _failing.append((name, call, place.absolute()))
    try:
        yield _met
    finally:
        _failing.clear()


_CALLS: dict[str, Call] = {
    "os.mkdir": "write",
    "os.rename": "rename",
    "os.listdir": "read",
    "os.scandir": "read",
}


def _kind(event: str, args: tuple[Any, ...]) -> Call | None:
    if event != "open":
        return _CALLS.get(event)
    _, mode, flags = args
    writes = any(sign in mode for sign in "wax+") if mode else bool(flags & _OPENED)
    return "write" if writes else "read"


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if not _failing or not args or not isinstance(args[0], (str, bytes, os.PathLike)):
        return
    name, call, place = _failing[0]
    path = Path(os.fsdecode(args[0])).absolute()
    if _kind(event, args) == call and place in (path, *path.parents):
        number = getattr(errno, name)
        _met.append(f"{event} {path}")
        raise OSError(number, os.strerror(number), str(path))


sys.addaudithook(_listen)  # no hook can be taken away again, and this one waits for a fault
