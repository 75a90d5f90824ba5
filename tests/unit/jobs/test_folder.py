"""What batch script and trainers tell each other: the folder, and the count of attempts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from signfuse_dist.engine.stopping import JOB_FOLDER, REQUEUE, StopRequest, stop_file
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.jobs.batch import Attempts
from signfuse_dist.jobs.folder import JobFolder, newest_checkpoint


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "job")
    folder.clear()
    return folder


def fail(job: JobFolder, error: Exception) -> None:
    with pytest.raises(type(error)), job.failures_named():
        raise error


def test_what_the_machine_failed_at_is_worth_another_attempt(job: JobFolder) -> None:
    """A full disk may have room then; what a user asked for would be refused again."""
    fail(job, MachineError("the checkpoint of step 8 could not be written"))
    end = job.end_of_attempt(1)
    assert end.kind == "failed"
    assert "the checkpoint of step 8 could not be written" in end.why


def checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def test_a_process_of_no_job_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(JOB_FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    nobody = JobFolder.from_environment()
    nobody.begin(tmp_path)
    nobody.end(finished=True)
    fail(nobody, RuntimeError("broken"))
    assert stop_file() is None
    assert list(tmp_path.iterdir()) == []


def test_what_the_launcher_makes_1_of_is_told_apart(job: JobFolder, tmp_path: Path) -> None:
    job.begin(tmp_path / "run")
    assert job.end_of_attempt(1).kind == "failed"
    assert "exit status 1; no process named an error" in job.end_of_attempt(1).why
    assert "killed by signal 9" in job.end_of_attempt(-9).why
    job.end(finished=False)
    assert job.stopped
    assert job.end_of_attempt(1).kind == "stopped"
    job.begin(tmp_path / "next run")
    assert not job.stopped
    assert job.end_of_attempt(REQUEUE).kind == "stopped", "where no launcher stands between"
    job.end(finished=True)
    assert job.end_of_attempt(0).kind == "finished"


def test_the_first_error_is_the_one_that_is_named(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "3")
    fail(job, RuntimeError("out of memory"))
    monkeypatch.setenv("RANK", "0")
    fail(job, RuntimeError("connection closed by peer"))
    end = job.end_of_attempt(1)
    assert end.kind == "failed"
    assert end.why.startswith("process 3 on ")
    assert end.why.endswith(": RuntimeError: out of memory")
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["failure.json"]
    job.clear()
    fail(job, UserError("no such folder"))
    assert job.end_of_attempt(1).kind == "refused"


def test_a_stop_that_was_asked_for_ends_with_the_attempt(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(JOB_FOLDER, str(tmp_path / "job"))
    assert not StopRequest(stop_file()).asked
    job.ask_stop()
    assert StopRequest(stop_file()).asked
    job.clear()
    assert not StopRequest(stop_file()).asked


def test_a_stop_that_was_asked_for_is_heeded_by_a_command_of_several_runs(
    job: JobFolder, tmp_path: Path
) -> None:
    job.begin(tmp_path / "run")
    job.end(finished=True)
    assert job.end_of_attempt(1).kind == "failed"
    job.ask_stop()
    assert job.end_of_attempt(1).kind == "stopped"
    fail(job, RuntimeError("no memory"))
    assert job.end_of_attempt(1).kind == "failed", "though a stop was asked for as well"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_ask_for_a_stop_while_a_launcher_is_waited_for(
    job: JobFolder, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with job.asking(number):
        signal.raise_signal(number)
    assert (tmp_path / "job" / "stop").exists()
    assert signal.getsignal(number) == before


def test_only_whole_checkpoints_of_every_run_folder_count(job: JobFolder, tmp_path: Path) -> None:
    assert job.newest_step() == 0
    for name, step in (("one", 40), ("two", 3)):
        job.begin(tmp_path / name)
        job.begin(tmp_path / name)
        checkpoint(tmp_path / name, step)
    checkpoint(tmp_path / "one", 20)
    (tmp_path / "one" / "checkpoints" / ".step_00000060.part").mkdir()
    (tmp_path / "one" / "checkpoints" / "step_of_something").mkdir()
    assert newest_checkpoint(tmp_path / "one" / "checkpoints") == 40
    job.clear()
    assert job.newest_step() == 43, "a new attempt begins where the one before has ended"


def attempt(folder: Path, begun_at: int, ended_at: int | None, why: str = "") -> Attempts:
    attempts = Attempts(folder, 2)  # read again each time, as by another process
    attempts.begin(begun_at)
    if ended_at is not None:
        attempts.end(ended_at, why)
    return attempts


def test_a_job_that_gets_no_further_is_refused_and_its_last_error_named(tmp_path: Path) -> None:
    assert attempt(tmp_path, 0, 40, "stopped").refusal() is None
    assert attempt(tmp_path, 40, 40, "no memory").refusal() is None
    refusal = attempt(tmp_path, 40, 40, "no disk").refusal()
    assert refusal is not None
    assert "2 attempts in a row got no further than step 40" in refusal
    assert "The last: no disk." in refusal


def test_a_step_forward_begins_the_count_again(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 0)
    assert attempt(tmp_path, 0, 1).refusal() is None
    assert attempt(tmp_path, 1, 1).refusal() is None
    assert attempt(tmp_path, 1, 1).refusal() is not None


def test_attempts_that_were_killed_count_when_the_next_begins(tmp_path: Path) -> None:
    attempt(tmp_path, 0, None)
    assert attempt(tmp_path, 0, None).refusal() is None
    refusal = attempt(tmp_path, 0, None).refusal()
    assert refusal is not None
    assert "ended without a word" in refusal
    assert attempt(tmp_path, 12, None).refusal() is None, "the third had got to step 12"
