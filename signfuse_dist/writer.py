"""Which process writes: a name that is its own for ever, and whether that process still lives.

Numbers of processes are given again. With the time at which its process started a number is not,
within one boot of one kernel and one namespace of numbers (a container has its own); so a name has
all three. Of a process elsewhere nothing can be told from here. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PF_EXITING = 0x4  # of the kernel's flags of a process: it runs no more code of its own
_NAME = re.compile(r"([0-9a-f]{8})-([0-9]{1,10})-([0-9]{1,20})")
_TEMPORARY = re.compile(rf"\.(.+)\.({_NAME.pattern})\.[0-9a-f]{{8}}(?:\.old)?\.(?:tmp|part)")


@dataclass(frozen=True)
class Writer:
    """A process: ``where`` its number counts, the number, and when it started in clock ticks."""

    where: str
    pid: int
    started: int

    @classmethod
    def this(cls) -> Writer:
        """Return this process."""
        return _this(os.getpid())  # which differs in a process that was forked

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        """Return the process of a name, None where it is none."""
        match = _NAME.fullmatch(text)
        return cls(match[1], int(match[2]), int(match[3])) if match else None

    def __str__(self) -> str:
        return f"{self.where}-{self.pid}-{self.started}"

    def lives(self) -> bool | None:
        """Return whether the process still runs; None where that cannot be seen from here."""
        if self.where != Writer.this().where:
            return None
        return _started(self.pid) == self.started


@cache
def _this(pid: int) -> Writer:
    started = _started(pid)
    assert started is not None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    numbers = os.stat("/proc/self/ns/pid").st_ino
    where = hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:8]
    return Writer(where, pid, started)


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks after the boot; None of one that has ended.

    A process that is ending, or that nobody has waited for yet, has ended: it writes no more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    state, flags, started = fields[0], int(fields[6]), int(fields[19])
    return None if state in "ZX" or flags & _PF_EXITING else started


def temporary_beside(path: Path, end: str = ".tmp") -> Path:
    """Return a name that no other writer has, for what takes the place of ``path`` when whole.

    It says who writes, for :func:`writer_of`. ``end`` is ``.tmp`` of a file, ``.part`` of a folder.
    """
    return path.with_name(f".{path.name}.{Writer.this()}.{uuid.uuid4().hex[:8]}{end}")


def writer_of(temporary: str) -> tuple[str, Writer] | None:
    """Return of a temporary name what is written under it, and by whom; None of another name."""
    match = _TEMPORARY.fullmatch(temporary)
    if match is None:
        return None
    writer = Writer.parse(match[2])
    assert writer is not None
    return match[1], writer
