"""The launcher's own end: whose error is told last, once, and which status stands for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from helpers.repository import ROOT
from signfuse_dist.answer import ERROR_FILE, NotedError
from signfuse_dist.jobs import launcher

USER = NotedError("stage.epochs: x", 2, "process 1 on a", is_fault=False)
FULL = NotedError("disk full", 75, "process 1 on a", is_fault=False)
FAULT = NotedError("KeyError: 'a'", 1, "process 1 on a", is_fault=True)


@pytest.mark.parametrize(
    ("noted", "status", "ends", "said"),
    [
        (USER, 2, 2, "error: stage.epochs: x\n"),
        (FULL, 75, 75, "error: disk full\n"),
        (FAULT, 1, 1, "error: process 1 on a failed, its traceback stands above: KeyError: 'a'\n"),
        (None, 1, 1, "error: process 1 ended with status 1; what it said stands above\n"),
        (None, 70, 70, "error: a process died or hung, and is named above; the same command"),
        (FAULT, -9, 137, "error: process 1 was killed by SIGKILL; the same command goes on. Where"),
        (None, -11, 139, "error: process 1 was killed by SIGSEGV; the same command goes on\n"),
        (None, 75, 75, ""),
        (None, 130, 130, ""),
    ],
)
def test_what_a_process_ended_with_is_said_in_a_line_and_is_the_launchers_status(
    noted: NotedError | None,
    status: int,
    ends: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launcher._end(noted, status, "process 1") == ends
    assert capsys.readouterr().err.startswith(said)


def failure(rank: int, status: int, when: int) -> ProcessFailure:
    found = ProcessFailure(rank, 1000 + rank, status, "nowhere")
    found.timestamp = when
    return found


@pytest.mark.parametrize(
    ("statuses", "cause"),
    [
        ([(1, 10), (-15, 10)], 0),  # torchrun ended the other
        ([(1, 10), (-9, 10)], 1),  # whose end the first has felt
        ([(2, 10), (-9, 40)], 0),  # torchrun killed the other, which did not end
    ],
)
def test_a_process_that_was_killed_is_the_cause_and_one_that_torchrun_ended_is_not(
    statuses: list[tuple[int, int]], cause: int
) -> None:
    failures = {rank: failure(rank, *of) for rank, of in enumerate(statuses)}
    assert launcher._cause(ChildFailedError("train", failures))[0] == cause


def launched(*words: str) -> tuple[int, str, str]:
    """Launch two processes that end as their word says; return the status, output and error."""
    options = ["--config_file", "launch/node_ddp.yaml", "--num_processes", "2"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "signfuse_dist.jobs.launcher", *options),
            *("--main_process_port", "0", "-m", "helpers.failing_process", *words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("user", "user"), 2, "error: stage.epochs: user is no number\n"),
        (("machine", "echo"), 75, "error: the disk is full\n"),
        (("asleep", "killed"), 137, "error: process 1 was killed by SIGKILL; "),
        (("stopped", "stopped"), 75, ""),
        (("well", "well"), 0, ""),
    ],
)
def test_of_two_processes_one_error_is_told_without_a_word_of_torchrun(
    words: tuple[str, str], status: int, said: str
) -> None:
    ended, _, error = launched(*words)
    assert (ended, error.count("\n")) == (status, 1 if said else 0), error
    assert error.startswith(said)


@pytest.mark.long
def test_a_fault_of_the_program_has_its_traceback_and_a_last_line() -> None:
    status, _, error = launched("fault", "asleep")
    assert status == 1
    assert error.count("Traceback") == 1
    assert "ChildFailedError" not in error
    last = error.splitlines()[-1]
    assert last.startswith("error: process 0 on ")
    assert last.endswith("failed, its traceback stands above: KeyError: 'a bug'")


def test_a_launch_file_that_accelerate_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 1\nfoo: 3\n", encoding="utf-8")
    assert launcher.main(["--config_file", str(file), "-m", "helpers.failing_process"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --launch {file}: Accelerate starts nothing with it: ")
    assert "unknown keys (['foo'])" in error
    assert error.count("\n") == 1
    assert ERROR_FILE not in os.environ
