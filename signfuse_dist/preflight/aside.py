"""Questions that only torch can answer, asked of a process of their own.

What looks at a job before it runs imports no torch itself: on a login node it is to answer at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from signfuse_dist.errors import MachineError, UserError

_MARK = "signfuse answers: "  # before the one line that is read; libraries print others


class NoAnswerError(UserError):
    """The process ended without an answer; the message is how, and what it said last."""


def ask_aside(module: str, question: Any) -> Any:
    """Return what a module of ``signfuse_dist.preflight`` answers by :func:`answer_aside`.

    Question and answer are JSON; it takes seconds. Raises the :class:`UserError` or
    :class:`MachineError` that the module raised, and :class:`NoAnswerError`.
    """
    done = subprocess.run(
        # -P: no file of the user's working folder stands in for one of a library.
        [sys.executable, "-P", "-m", f"signfuse_dist.preflight.{module}"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not said:
        code = done.returncode
        how = f"signal {-code}" if code < 0 else f"status {code}"
        last = done.stderr.strip().rpartition("\n")[2]
        raise NoAnswerError(f"its process ended with {how}" + (f": {last}" if last else ""))
    answer = json.loads(said[-1].removeprefix(_MARK))
    if "refused" in answer:
        raise (MachineError if answer["machine"] else UserError)(answer["refused"])
    return answer["answer"]


def answer_aside(answer: Callable[[Any], Any]) -> None:
    """Answer the question on standard input, in the process of :func:`ask_aside`."""
    try:
        said = {"answer": answer(json.load(sys.stdin))}
    except UserError as error:
        said = {"refused": str(error), "machine": isinstance(error, MachineError)}
    print(f"\n{_MARK}{json.dumps(said)}", flush=True)
