"""A process of its own that holds a lock until it is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = """
import sys, time
from pathlib import Path
from signfuse_dist.locks import Share, held, held_share
path, *share = sys.argv[1:]
if share:
    *numbers, about = share
    lock = held_share(Path(path), Share(*map(int, numbers)), "the split", about=about)
else:
    lock = held(Path(path), "the run")
with lock:
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def lock_holder(path: Path, *share: object) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock file ``path``, or a share of a folder's pieces: its numbers, and about what."""
    command = [sys.executable, "-c", _HOLD, str(path), *map(str, share)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()
