"""Keeping native libraries from writing their start-up notices into the user's terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced_stderr(wanted: bool = True) -> Iterator[None]:
    """Send what C++ code writes to file descriptor 2 to nowhere, for the duration.

    MediaPipe logs before its logging can be set, so no environment variable stops it. Python's
    exceptions are not affected, and with ``wanted`` False nothing is done.
    """
    if not wanted:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
