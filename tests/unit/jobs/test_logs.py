"""What a job is called, and the second name of its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.failing_disk import failing_disk
from helpers.repository import ROOT
from signfuse_dist.errors import UserError
from signfuse_dist.jobs.logs import log_of, main

SCONTROL = '#!/bin/sh\necho "$@" >> "$CALLS"\nexit "$REFUSES"\n'


def start(
    folder: Path, *words: str, name: str = "signfuse-finetune", refuses: str = "0"
) -> tuple[int, str]:
    """Run the module as a batch script does, its output appended to the job's log."""
    stub = folder / "bin" / "scontrol"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(SCONTROL)
    stub.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    log = folder / "slurm-12.log"
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-m", "signfuse_dist.jobs.logs", *words],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            env={
                **kept,
                "PATH": f"{stub.parent}:{os.environ['PATH']}",
                "CALLS": str(folder / "calls"),
                "REFUSES": refuses,
                "SLURM_JOB_ID": "12",
                "SLURM_JOB_NAME": name,
            },
        )
    return done.returncode, log.read_text()


def test_the_log_of_a_stage_lies_in_its_run_and_a_requeue_goes_on_in_it(tmp_path: Path) -> None:
    words = ("train", "demo", "stage=finetune", f"train.output={tmp_path}/my runs")
    status, printed = start(tmp_path, *words)
    named = tmp_path / "my runs" / "demo" / "finetune" / "slurm" / "demo-finetune-12.log"
    assert (status, printed) == (0, f"log: {named}\n")
    assert named.samefile(tmp_path / "slurm-12.log")
    assert (tmp_path / "calls").read_text() == "update JobId=12 JobName=demo-finetune\n"
    with (tmp_path / "slurm-12.log").open("a") as file:
        file.write("trained\n")
    assert start(tmp_path, *words, name="demo-finetune")[0] == 0
    assert named.read_text() == f"log: {named}\ntrained\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 1, "it has its name"


def test_a_job_that_cannot_be_renamed_and_a_log_that_cannot_be_linked_go_on_and_say_so(
    tmp_path: Path,
) -> None:
    (tmp_path / "demo").write_text("no folder")
    status, printed = start(
        tmp_path, "train", "demo", "stage=finetune", f"train.output={tmp_path}", refuses="1"
    )
    assert status == 0
    assert "has no name" in printed
    assert f"it is {tmp_path}/slurm-12.log" in printed
    assert "the job keeps its name: scontrol update" in printed


def test_an_error_in_the_words_ends_the_job_before_anything_is_made(tmp_path: Path) -> None:
    status, printed = start(
        tmp_path, "train", "demo", "stage=finetun", f"train.output={tmp_path}/o"
    )
    assert status == 2
    assert printed.startswith("error: ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "no command; usage"), (("train",), "no experiment; give its file")],
)
def test_a_job_without_words_is_told_what_is_missing(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, printed = start(tmp_path, *words)
    assert (status, printed.count("\n")) == (2, 1)
    assert printed.startswith(f"error: {said}")


@pytest.mark.parametrize(("name", "status"), [("EIO", 75), ("ESTALE", 75), ("EACCES", 2)])
def test_what_the_disk_does_wrong_is_one_message_that_names_it(
    tmp_path: Path,
    name: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = tmp_path / "demo" / "finetune"
    run.mkdir(parents=True)  # is listed for what a user may have meant
    with failing_disk(name, "read", run) as met:
        assert main(["evaluate", str(run), "--split", "test"]) == status
    assert met
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert str(run) in said
    assert name in said
    assert "Traceback" not in said


def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "signfuse-pack"}
    words = ("train", "demo", "stage=finetune", f"train.output={tmp_path}")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "signfuse_dist.jobs.logs", *words],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
    assert done.returncode == 75, "what is said of scontrol cannot be written"
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_command_has_its_name_and_folder(tmp_path: Path) -> None:
    run = tmp_path / "demo" / "finetune"
    (run / "model").mkdir(parents=True)
    found = log_of("evaluate", [str(run), "--split", "test", "evaluation.num_beams=8"])
    assert (found.job, found.folder) == ("demo-evaluate-test", run / "slurm")
    packed = log_of("pack", ["table", "--root", "t.tsv", "--split", "all", "--out", "shards/x"])
    assert packed.path("12_3") == Path("shards/x/slurm/table-pack-all-12_3.log")
    ablation = log_of("ablate", ["fusion", "demo", f"train.output={tmp_path}", "--seeds", "0,1"])
    assert (ablation.job, ablation.folder) == ("demo-ablate", tmp_path / "ablation" / "slurm")


def test_a_split_that_is_a_path_names_no_log(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="is not a name"):
        log_of("evaluate", [str(tmp_path), "--split", "../../x"])
    packed = log_of("pack", ["../x", "--root", "t", "--split", "/y", "--out", "o"])
    assert packed.path("1") == Path("o/slurm/.._x-pack-_y-1.log")
