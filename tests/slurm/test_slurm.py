"""The scripts on a real Slurm of two nodes, on CPU, against the launcher started by hand."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from helpers.local_slurm import SMALL, LocalSlurm
from helpers.project import Project
from helpers.repository import ROOT
from signfuse_dist.config import STAGES
from signfuse_dist.jobs.folder import newest_checkpoint

pytestmark = [pytest.mark.alone, pytest.mark.long]
TWO_NODES = ("--nodes=2", *SMALL)
# From nothing, so that nothing has to be trained before; LoRA and every loss are in it.
LAST_ALONE = ("stage=finetune", "train.stages=[finetune]", "stage.epochs=16",
              "train.checkpoint_steps=1000", "train.dev_epochs=0")  # fmt: skip


def weights(output: Path, stage: str) -> dict[str, Tensor]:
    folder = output / "small" / stage / "model"
    files = (*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(one: Path, other: Path, stage: str) -> None:
    ours, theirs = weights(one, stage), weights(other, stage)
    assert ours.keys() == theirs.keys() != set()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), f"{stage}: {name} differs"


def metrics(output: Path, stage: str) -> list[dict[str, float]]:
    path = output / "small" / stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def printed_by(log: Path) -> str:
    """What a job printed; Slurm mixes the bytes of its nodes, in the middle of a character too."""
    return log.read_text("utf-8", errors="replace")


@pytest.fixture(scope="module")
def undisturbed(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last stage alone, on two processes of one launcher."""
    output = tmp_path_factory.mktemp("undisturbed")
    project.train(output, 2, *LAST_ALONE)
    return output


def test_the_pipeline_trains_and_evaluates_over_two_nodes_as_one_launcher_does(
    slurm: LocalSlurm, project: Project, tmp_path: Path
) -> None:
    by_hand, by_slurm = tmp_path / "hand", tmp_path / "slurm"
    done = subprocess.run(
        [
            "bash",
            "slurm/pipeline.sh",
            project.experiment,
            *TWO_NODES,
            "--output",
            f"{tmp_path}/%x.log",
            f"train.output={by_slurm}",
        ],
        cwd=ROOT,
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split("\t") for line in done.stdout.splitlines())
    assert list(jobs) == [*STAGES, "evaluate"]
    for stage in STAGES:
        project.train(by_hand, 2, f"stage={stage}")
    named = dict(zip(jobs, (*(f"small-{s}" for s in STAGES), "small-evaluate-test"), strict=True))
    for name, job in jobs.items():
        assert slurm.wait(job) == "COMPLETED", printed_by(tmp_path / f"{named[name]}.log")
    for stage in STAGES:
        assert_same(by_slurm, by_hand, stage)
    log = printed_by(tmp_path / "small-finetune.log")
    assert "2 processes" in log
    run = by_slurm / "small" / "finetune"
    logs = {f"{named[name]}-{jobs[name]}.log" for name in ("finetune", "evaluate")}
    assert {path.name for path in (run / "slurm").iterdir()} == logs
    found = run / "evaluation" / "test"
    assert json.loads((found / "scores.json").read_text())
    assert (found / "report.html").is_file()


def test_a_stage_that_is_warned_in_the_middle_is_requeued_and_ends_as_if_it_was_not(
    slurm: LocalSlurm, project: Project, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = slurm.submit(
        *TWO_NODES,
        f"--output={log}",
        "slurm/stage3.sh",
        project.experiment,
        *LAST_ALONE[1:],
        f"train.output={tmp_path}",
    )
    slurm.wait_until(job, lambda: len(metrics(tmp_path, "finetune")) >= 5)
    slurm.signal_batch(job, "USR1")
    assert slurm.wait(job) == "COMPLETED", printed_by(log)
    printed = printed_by(log)
    (stopped,) = re.findall(r"requeued as attempt 2, last checkpoint step (\d+)", printed)
    assert 5 <= int(stopped) < 80, "stopped in the middle"
    assert f"attempt 2, last checkpoint step {stopped}" in printed
    assert f"resuming after step {stopped} of 80" in printed
    assert_same(tmp_path, undisturbed, "finetune")
    assert [line["step"] for line in metrics(tmp_path, "finetune")] == list(range(1, 81))


def test_a_stage_that_the_user_cancels_writes_a_checkpoint_and_is_not_brought_back(
    slurm: LocalSlurm, project: Project, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = ("slurm/stage3.sh", project.experiment, *LAST_ALONE[1:], f"train.output={tmp_path}")
    job = slurm.submit(*TWO_NODES, f"--output={log}", *words)
    slurm.wait_until(job, lambda: len(metrics(tmp_path, "finetune")) >= 5)
    slurm.cancel(job)
    assert slurm.wait(job) == "CANCELLED"
    checkpoints = tmp_path / "small" / "finetune" / "checkpoints"
    slurm.wait_until_idle()
    step = newest_checkpoint(checkpoints)
    assert 5 <= step < 80, printed_by(log)
    # Until its last process has ended, Slurm calls a cancelled job COMPLETING.
    assert re.search(r"not requeued from here: Slurm says (COMPLETING|CANCELLED)", printed_by(log))
    assert slurm.state(job) == "CANCELLED"
    again = slurm.submit(*TWO_NODES, f"--output={log}", *words)
    assert slurm.wait(again) == "COMPLETED", printed_by(log)
    assert f"resuming after step {step} of 80" in printed_by(log)
    assert_same(tmp_path, undisturbed, "finetune")


def test_a_stage_that_crashes_at_once_is_given_up_and_the_error_named(
    slurm: LocalSlurm, project: Project, tmp_path: Path
) -> None:
    """Here for want of a network interface; what only a lucky node could cure is tried again."""
    log = tmp_path / "log"
    job = slurm.submit(
        *TWO_NODES,
        f"--output={log}",
        "slurm/stage3.sh",
        project.experiment,
        *LAST_ALONE[1:],
        f"train.output={tmp_path}",
        SIGNFUSE_FUTILE_ATTEMPTS="2",
        GLOO_SOCKET_IFNAME="absent0",
    )
    assert slurm.wait(job) == "FAILED"
    printed = printed_by(log)
    assert printed.count("requeued as attempt") == 1, printed
    assert re.search(
        r"2 attempts in a row got no further than step 0; not requeued\. The last: process [01] on "
        r"\S+: \w+Error: .*absent0",
        printed,
    ), printed


def test_a_stage_that_is_refused_is_not_requeued(
    slurm: LocalSlurm, project: Project, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = slurm.submit(
        *TWO_NODES,
        f"--output={log}",
        "slurm/stage2.sh",
        project.experiment,
        f"train.output={tmp_path}",
    )
    assert slurm.wait(job) == "FAILED"
    assert "train it first (stage=contrastive)" in printed_by(log)
    assert "not requeued: it would be refused again" in printed_by(log)


def test_two_nodes_that_are_alike_pass_the_check_of_nodes(
    slurm: LocalSlurm, tmp_path: Path
) -> None:
    words = (*TWO_NODES, f"--output={tmp_path}/%j.log", "slurm/check_nodes.sh", "--folder")
    job = slurm.submit(*words, tmp_path)
    assert slurm.wait(job) == "COMPLETED", printed_by(tmp_path / f"{job}.log")
    printed = printed_by(tmp_path / f"{job}.log")
    assert "2 processes on 2 nodes, through gloo" in printed
    assert re.search(r"^node0 .*\n^node1 ", printed, re.MULTILINE)
    assert "0 errors" in printed


def test_packing_is_shared_by_an_array(slurm: LocalSlurm, project: Project, tmp_path: Path) -> None:
    words = (
        "synthetic",
        "--root",
        project.folder / "corpus",
        "--split",
        "train",
        "--frame-size",
        "32",
        "--fps",
        "10",
        "--clips-per-shard",
        "4",
    )
    job = slurm.submit(
        "--array=1-5:2",
        *SMALL,
        f"--output={tmp_path}/%a.log",
        "slurm/pack.sh",
        *words,
        "--out",
        tmp_path / "array",
    )
    assert slurm.wait(job) == "COMPLETED,COMPLETED,COMPLETED", slurm.state(job)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "signfuse_dist.cli",
            "pack",
            *map(str, words),
            "--out",
            tmp_path / "alone",
        ],
        cwd=ROOT,
        env=slurm.environment,
        check=True,
    )
    files = {p.name: p.read_bytes() for p in (tmp_path / "array").glob("*") if p.is_file()}
    assert len([name for name in files if name.endswith(".tar")]) == 5
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "alone").glob("*") if p.is_file()}


def test_an_ablation_is_shared_by_an_array(
    slurm: LocalSlurm, project: Project, tmp_path: Path
) -> None:
    rows = [{"name": fusion, "words": [f"model.fusion={fusion}"]} for fusion in ("cmfa", "sum")]
    names = tmp_path / "two.yaml"
    names.write_text(yaml.safe_dump({"title": "T", "paper": "-", "full": "cmfa", "rows": rows}))
    job = slurm.submit(
        "--array=3-4",
        *SMALL,
        f"--output={tmp_path}/%a.log",
        "slurm/ablate.sh",
        names,
        project.experiment,
        "train.stages=[finetune]",
        f"train.output={tmp_path}",
        "--split",
        "test",
        "--launch",
        "launch/cpu_zero2.yaml",
        "--num-processes",
        "1",
    )
    logs = [tmp_path / "3.log", tmp_path / "4.log"]
    ended = slurm.wait(job, seconds=900)  # two rows are trained and scored
    assert ended == "COMPLETED,COMPLETED", [printed_by(log) for log in logs]
    for task, log in zip((3, 4), logs, strict=True):
        named = tmp_path / "ablation" / "slurm" / f"small-ablate-{job}_{task}.log"
        assert named.samefile(log)
    table = (tmp_path / "ablation" / "tables" / "small" / "two" / "table.csv").read_text()
    assert all(row["BLEU-1"] for row in csv.DictReader(table.splitlines()))
    trained = [re.findall(r"(\S+): done in", printed_by(log)) for log in logs]
    assert all(trained), "each task trained a row"
    assert not set(trained[0]) & set(trained[1])
