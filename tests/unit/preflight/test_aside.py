"""Questions to a process of its own: its answer, its refusal, and that it ends without either."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.preflight import aside
from signfuse_dist.preflight.aside import NoAnswerError, ask_aside

PROGRAM = """
import atexit, os, signal, sys
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.preflight.aside import answer_aside

def answer(question):
    print("a library's line")
    print("a library's warning", file=sys.stderr, flush=True)
    if question == "user":
        raise UserError("two are wrong\\n  - one\\n  - two")
    if question == "machine":
        raise MachineError("the disk is full")
    if question == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if question == "broken":
        raise ZeroDivisionError("by zero")
    return {"given": question}

atexit.register(print, "bye")
answer_aside(answer)
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Run PROGRAM in the place of a module; return the commands that were asked for."""
    commands: list[Sequence[str]] = []
    run = subprocess.run

    def of_program(command: Sequence[str], **named: Any) -> Any:
        commands.append(command)
        return run([command[0], "-c", PROGRAM], **named)

    monkeypatch.setattr(subprocess, "run", of_program)
    return commands


def test_the_answer_is_found_among_what_libraries_print(program: list[Sequence[str]]) -> None:
    assert ask_aside("parameters", [1, "two"]) == {"given": [1, "two"]}
    assert program[0][-1] == "signfuse_dist.preflight.parameters"


@pytest.mark.usefixtures("program")
def test_a_refusal_is_raised_as_it_was_with_all_its_lines() -> None:
    with pytest.raises(UserError, match=r"^two are wrong\n  - one\n  - two$") as refused:
        ask_aside("parameters", "user")
    assert type(refused.value) is UserError
    with pytest.raises(MachineError, match=r"^the disk is full$"):
        ask_aside("parameters", "machine")


@pytest.mark.usefixtures("program")
def test_a_process_that_ends_without_an_answer_says_how() -> None:
    with pytest.raises(NoAnswerError, match="ended with signal 9: a library's warning"):
        ask_aside("parameters", "killed")
    with pytest.raises(NoAnswerError, match="ended with status 1: ZeroDivisionError: by zero"):
        ask_aside("parameters", "broken")


def test_no_file_of_the_working_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('my own script')", encoding="utf-8")
    paths = os.environ.get("PYTHONPATH", "")
    package = str(Path(aside.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (package, paths))))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the model cannot be built"):
        ask_aside("parameters", {"fusion": "no such"})
