"""A process of a launcher that ends as its first word says; with several, each by its rank.

Words: `user`, `machine`, `fault`, `killed`, `asleep`, `stopped`, `echo` (another's end is felt
as a fault of the program).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from signfuse_dist.answer import ERROR_FILE, answer
from signfuse_dist.errors import MachineError, UserError


def run() -> int:
    rank = int(os.environ.get("RANK", "0"))
    words = sys.argv[1:]
    word = words[min(rank, len(words) - 1)]
    print(f"process {rank} is here", flush=True)
    if word == "user":
        raise UserError(f"stage.epochs: {word} is no number")
    if word == "machine":
        raise MachineError("the disk is full")
    if word == "fault":
        raise KeyError("a bug")
    if word == "killed":
        time.sleep(0.5)  # so that whoever sleeps is there
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "asleep":
        time.sleep(60)
    if word == "echo":
        while not Path(os.environ[ERROR_FILE]).exists():
            time.sleep(0.05)
        raise RuntimeError("connection closed by peer")
    return 75 if word == "stopped" else 0


if __name__ == "__main__":
    sys.exit(answer(run))
