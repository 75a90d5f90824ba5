"""Whose fault it is that a row cannot be packed: that of its own files, or the machine's.

A row that is dropped stays dropped, so nothing may be dropped because a disk was away for a minute.
Three things tell. An error of the operating system says it by its number
(:func:`~signfuse_dist.system_errors.machine_fault`). FFmpeg gives some of these numbers for damaged
files too, and takes a read that fails for the end of the file: what it complains of is read again
without it. And a mount that vanished leaves an empty folder, or none, where there was a full one
when packing began.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av

from signfuse_dist.corpora import ClipRow
from signfuse_dist.errors import UserError
from signfuse_dist.system_errors import machine_cause, machine_error, machine_fault, stopped_at

_MOST_PLACES = 1000  # folders that are looked after; of more, the folders above them
_AT_ONCE = 2**31 - 1  # bytes: FFmpeg refuses to allocate more, with the number of no memory
# What FFmpeg says of damaged files, too; it has none of the machine's other numbers from itself.
_OF_DAMAGE_TOO = (errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.ENODEV)
_ENDED_EARLY = ("truncated video", "unreadable video")  # kinds of reasons


@dataclass(frozen=True)
class Places:
    """The folders in which a corpus lies and that held something when packing began."""

    full: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, root: Path, rows: Iterable[ClipRow]) -> Places:
        """Look at ``root``, the folder or table of a corpus, and where its rows' files lie.

        Raises :class:`~signfuse_dist.errors.MachineError` when a folder fails as a disk does.
        """
        folders = {path.parent for row in rows for path in _files(row)}
        while len(folders) > _MOST_PLACES:
            folders = {folder.parent for folder in folders}
        folders.add(root if root.is_dir() else root.parent)
        return cls(frozenset(folder for folder in folders if _was_full(folder)))

    def refuse_vanished(self, row: ClipRow) -> None:
        """Raise MachineError when a folder above the row's files is not what it was.

        One that may not be read any more is the machine's fault too: tickets of network disks
        run out.
        """
        for folder in {folder for path in _files(row) for folder in path.parents} & self.full:
            try:
                full = _is_full(folder)
            except OSError as error:
                raise machine_error(error, folder) from error
            if not full:
                raise stopped_at(folder, "is empty or gone, and was full when packing began")


def reason_of(error: Exception, row: ClipRow, places: Places) -> str:
    """Return why a row is dropped, in one line that names its video as the table does.

    Raises :class:`~signfuse_dist.errors.MachineError` where the row is not to blame for ``error``.
    """
    decoder = next((cause for cause in _causes(error) if isinstance(cause, av.FFmpegError)), None)
    cause = machine_cause(error)
    if cause is not None and (decoder is None or decoder.errno not in _OF_DAMAGE_TOO):
        raise machine_error(cause, getattr(cause, "filename", None) or row.named_file) from error
    places.refuse_vanished(row)
    if decoder is not None and decoder.errno == errno.ENOMEM and not _has_memory():
        raise machine_error(decoder, row.named_file) from error
    if decoder is not None or str(error).startswith(_ENDED_EARLY):
        _refuse_unreadable(row.named_file)
    if decoder is not None and cause is not None:
        return (
            f"unreadable video: {row.named_file.name} ({decoder.strerror}); is the file complete?"
        )
    if isinstance(error, UserError):
        return str(error)
    # Decoders and MediaPipe raise types of their own on bad input.
    words = str(error).replace(str(row.named_file.absolute()), row.source).splitlines()
    return f"not packable: {type(error).__name__} {words[0] if words else ''}".strip()


def _files(row: ClipRow) -> Iterator[Path]:
    if row.video is not None:
        yield row.video
    if row.joints is not None:
        yield row.joints


def _was_full(folder: Path) -> bool:
    try:
        return _is_full(folder)
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, folder) from error
        return False  # one that may not be listed tells nothing later either


def _is_full(folder: Path) -> bool:
    """Return whether there is such a folder with something in it; OSError where nobody can say."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _has_memory() -> bool:
    """Return whether there is room for as much as a decoder may ask for at once."""
    try:
        mmap.mmap(-1, _AT_ONCE).close()
    except OSError:
        return False
    return True


def _refuse_unreadable(path: Path) -> None:
    """Read a file that a decoder complains of; raise MachineError when the disk does too."""
    try:
        if path.is_file():
            _read(path)
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, path) from error


@lru_cache(maxsize=1)
def _read(path: Path) -> None:
    """Read a file to its end. One that was readable is not read again for its next row."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
