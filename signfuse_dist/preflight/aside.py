"""Questions that only torch can answer, asked of a process of their own.

What looks at a job before it runs imports no torch itself: on a login node it is to answer at once.
"""

from __future__ import annotations

import subprocess
import sys

from signfuse_dist.errors import UserError


def ask_aside(module: str, question: str) -> str:
    """Return what a module of ``signfuse_dist.preflight`` prints in its last line.

    It reads ``question`` from its standard input, and takes seconds. Raises UserError with the last
    line of its errors, less the name of the exception.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"signfuse_dist.preflight.{module}"],
        input=question,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout.rstrip().rpartition("\n")[2]
    last = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
    raise UserError(last.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: "))
