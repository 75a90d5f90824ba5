"""How every program of this package ends: an exit status, and one message without a traceback.

The statuses are 0; 1 for faults that were looked for and found; 2 for what the user can put right;
75 for a stop, or a fault of the machine, after which the same command goes on; 130 for ctrl-C; 141
where whoever reads the output has gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from signfuse_dist.errors import UserError, printable
from signfuse_dist.files import faults_told, told


def answer(run: Callable[[], int]) -> int:
    """Call ``run`` and return the exit status; an error of a user or of the machine is printed."""
    try:
        with faults_told():
            status = int(run())
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing may be flushed into it at exit.
        _leave_standard_output()
        return 141
    except OSError as error:  # of the flush
        return _refused(told(error, "standard output"))
    except UserError as error:
        return _refused(error)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


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
    print(f"error: {printable(str(error), several_lines=True)}", file=sys.stderr)
    return error.status


def _leave_standard_output() -> None:
    """Let what is still to be written to standard output go nowhere, now and at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
