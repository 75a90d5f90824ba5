"""How every program ends for what a user or the machine did: a status and one message."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT
from signfuse_dist.answer import ERROR_FILE, NotedError, answer
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.files import written_whole

FLOODED = """
import sys
from signfuse_dist.answer import ERROR_FILE, NotedError, answer
sys.exit(answer(lambda: print("whole") or 0))
"""


def raising(error: BaseException, cause: BaseException | None = None) -> int:
    def run() -> int:
        raise error from cause

    return answer(run)


def system(name: str, path: str | None = None) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "cause", "status", "said"),
    [
        (system("ENOSPC", "a.tar"), None, 75, "a.tar: No space left on device (ENOSPC)"),
        (system("EACCES", "a.tar"), None, 2, "a.tar: Permission denied (EACCES). Ask its owner"),
        (OSError(errno.EXDEV, "x", "a", None, "b"), None, 2, "a -> b: Invalid cross-device link"),
        (system("EBADF"), None, 2, "this process: Bad file descriptor (EBADF). Put that right"),
        (MemoryError(), None, 75, "Cannot allocate memory (ENOMEM)"),
        (OSError("no such model on the hub"), None, 2, "error: no such model on the hub\n"),
        (RuntimeError("I/O error: x (os error 28)"), None, 75, "No space left on device (ENOSPC)"),
        (UserError("t.tsv: odd"), system("EIO"), 75, "t.tsv: odd. Wait until the disk or mount"),
        (UserError("t.tsv: odd"), system("ENOENT"), 2, "error: t.tsv: odd\n"),
        (UserError("dev: x; or without"), MachineError("x"), 75, "error: dev: x; or without\n"),
        (KeyboardInterrupt(), None, 130, "run the same command again"),
    ],
)
def test_an_error_ends_in_one_message_and_the_status_of_its_kind(
    error: BaseException,
    cause: BaseException | None,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(error, cause) == status
    printed = capsys.readouterr().err
    assert said.removeprefix("this process: ") in printed
    assert printed.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        raising(KeyError("a bug"))


def test_of_several_processes_the_first_error_is_left_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE, str(note))
    assert raising(MachineError("disk full")) == 75
    assert raising(UserError("what follows from it")) == 2
    assert raising(RuntimeError("connection closed by peer")) == 1, "an echo, without traceback"
    assert capsys.readouterr().err == ""
    noted = NotedError.read(note)
    assert noted is not None
    assert (noted.said, noted.status, noted.is_fault) == ("disk full", 75, False)
    assert list(tmp_path.iterdir()) == [note]


def test_a_fault_of_the_program_is_told_where_it_is_met_also_under_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    with pytest.raises(KeyError):
        raising(KeyError("a bug"))
    assert raising(UserError("what follows from it")) == 2
    assert capsys.readouterr().err == "error: what follows from it\n"
    noted = NotedError.read(tmp_path / "error.json")
    assert noted is not None
    assert (noted.said, noted.is_fault) == ("KeyError: 'a bug'", True)


def test_an_error_that_cannot_be_noted_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "nowhere" / "error.json"))
    assert raising(UserError("t.tsv: odd")) == 2
    assert capsys.readouterr().err == "error: t.tsv: odd\n"


@pytest.mark.parametrize("became", [ImportError("half a module"), None])
def test_ctrl_c_that_a_library_catches_is_ctrl_c(
    became: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """numpy makes an ImportError of it, gradio goes on to the end of the program."""

    def run() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if became is not None:
                raise became from None
        return 0

    assert answer(run) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO"])
def test_what_is_written_whole_is_named_by_its_own_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise system(name)  # as write and fsync say it: without a path

    def run() -> int:
        with written_whole(tmp_path / "plan.json") as file:
            file.write(b"{}")
        return 0

    monkeypatch.setattr(os, "fsync", full)
    assert answer(run) == 75
    assert f"error: {tmp_path / 'plan.json'}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_standard_output_is_named() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", FLOODED],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 75
    assert "error: standard output: No space left on device (ENOSPC)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
