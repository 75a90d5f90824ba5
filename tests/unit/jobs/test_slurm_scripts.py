"""The Slurm scripts: sound shell, and the words that reach the commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.repository import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
SUBMITTED = [path for path in SCRIPTS if "#SBATCH" in path.read_text(encoding="utf-8")]
SOURCED = ("environment.sh", "site.example.sh")
# What names the job and its log notes its words in a file; all else prints them.
STUB = """#!/bin/sh
case "$2" in
  signfuse_dist.jobs.logs) shift 2; printf '%s\\n' "$@" > named ;;
  *) printf '%s\\n' $NAME "$@" ;;
esac
"""
SCONTROL = """#!/bin/sh
case "$2" in
  hostnames) printf 'node1\\nnode2\\n' ;;
  node) echo "NodeName=$3 NodeAddr=10.0.0.1 NodeHostName=$3" ;;
esac
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_that_is_submitted_sources_the_environment_and_can_be_executed(
    script: Path,
) -> None:
    text = script.read_text(encoding="utf-8")
    if script.name not in SOURCED:
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nsource slurm/environment.sh\n" in text
        assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SUBMITTED, ids=lambda path: path.name)
def test_a_job_asks_for_memory_and_its_log_keeps_its_name_when_the_job_is_renamed(
    script: Path,
) -> None:
    text = script.read_text(encoding="utf-8")
    assert re.search(r"^#SBATCH --mem=\d+G$", text, re.MULTILINE)
    (output,) = re.findall(r"^#SBATCH --output=(\S+)$", text, re.MULTILINE)
    assert output == ("slurm-%A_%a.log" if "#SBATCH --array" in text else "slurm-%j.log")


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.name not in SOURCED], ids=lambda path: path.name
)
def test_a_script_in_another_folder_stops_with_one_sentence(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", script, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: {tmp_path} is not the project's folder: ")


def run_script(name: str, folder: Path, *words: str, **slurm: str) -> tuple[int, list[str], str]:
    """Run a script as Slurm runs it, with commands that print their words, one a line."""
    shutil.copytree(ROOT / "slurm", folder / "slurm", dirs_exist_ok=True)
    for command in ("signfuse", "python", "srun"):
        stub = folder / ".venv" / "bin" / command
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(STUB.replace("$NAME", command))
        stub.chmod(0o755)
    (folder / ".venv" / "bin" / "scontrol").write_text(SCONTROL)
    (folder / ".venv" / "bin" / "scontrol").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"slurm/{name}", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **slurm},
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_CPUS_PER_TASK": "16",
}  # fmt: skip
NODES = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
USAGE = {
    "ablate.sh": "NAME EXPERIMENT", "evaluate.sh": "RUN", "pack.sh": "CORPUS",
    "stage1.sh": "EXPERIMENT", "stage2.sh": "EXPERIMENT", "stage3.sh": "EXPERIMENT",
}  # fmt: skip


def test_packing_is_shared_by_the_tasks_of_the_array(tmp_path: Path) -> None:
    words = ("table", "--root", "my data/t.tsv", "--split", "train", "--out", "$(out)")
    _, printed, _ = run_script("pack.sh", tmp_path, *words, **ARRAY)
    assert printed == [
        "signfuse",
        "pack",
        "--workers",
        "16",
        "--task-id",
        "3",
        "--num-tasks",
        "8",
        *words,
    ]


def test_an_ablation_is_shared_by_the_tasks_of_the_array_and_requeued(tmp_path: Path) -> None:
    _, printed, _ = run_script("ablate.sh", tmp_path, "fusion", "model=my model", **ARRAY)
    assert printed == [
        "python",
        "-m",
        "signfuse_dist.jobs.batch",
        "signfuse",
        "ablate",
        "fusion",
        "model=my model",
        "--task-id",
        "3",
        "--num-tasks",
        "8",
    ]


@pytest.mark.parametrize("script", ["pack.sh", "ablate.sh"])
def test_what_is_shared_and_is_no_array_says_how_it_is_submitted(
    script: str, tmp_path: Path
) -> None:
    status, _, error = run_script(script, tmp_path, "table", "demo")
    assert status != 0
    assert f"sbatch --array=0-7 slurm/{script}" in error


@pytest.mark.parametrize("script", USAGE)
def test_a_script_without_words_says_what_it_needs(script: str, tmp_path: Path) -> None:
    status, printed, error = run_script(script, tmp_path, **ARRAY)
    assert (status, printed) == (2, [])
    assert re.search(rf"usage: sbatch slurm/\w+\.sh {USAGE[script]}", error)


@pytest.mark.parametrize(
    ("script", "stage"),
    [("stage1.sh", "contrastive"), ("stage2.sh", "alignment"), ("stage3.sh", "finetune")],
)
def test_a_stage_is_one_launcher_a_node_under_the_program_that_requeues(
    script: str, stage: str, tmp_path: Path
) -> None:
    _, printed, _ = run_script(script, tmp_path, "my experiment", "data.shards=$(x) y", **NODES)
    assert printed[:8] == [
        "python",
        "-m",
        "signfuse_dist.jobs.batch",
        "srun",
        "--kill-on-bad-exit=1",
        "--ntasks",
        "2",
        "--ntasks-per-node=1",
    ]
    assert printed[-6:] == [
        "launcher",
        "-m",
        "signfuse_dist.train",
        "my experiment",
        f"stage={stage}",
        "data.shards=$(x) y",
    ]


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        ("stage2.sh", ["demo", "a.b=$(c) d"], ["train", "demo", "stage=alignment", "a.b=$(c) d"]),
        ("evaluate.sh", ["runs/a b", "--split", "t"], ["evaluate", "runs/a b", "--split", "t"]),
        ("pack.sh", ["table", "--out", "a b"], ["pack", "table", "--out", "a b"]),
        ("ablate.sh", ["fusion", "demo"], ["ablate", "fusion", "demo"]),
    ],
)
def test_a_job_is_named_by_its_words(
    script: str, words: list[str], named: list[str], tmp_path: Path
) -> None:
    run_script(script, tmp_path, *words, **ARRAY, **NODES)
    assert (tmp_path / "named").read_text().splitlines() == named


@pytest.mark.parametrize(
    ("script", "before", "words"),
    [
        ("stage1.sh", ["--ntasks-per-node=1"], ["bash", "-c"]),
        ("evaluate.sh", ["--ntasks-per-node=1"], ["bash", "-c"]),
        ("pack.sh", [], ["signfuse", "pack"]),
        ("ablate.sh", ["signfuse_dist.jobs.batch"], ["signfuse", "ablate"]),
    ],
)
def test_what_computes_is_put_into_the_container_of_the_site(
    script: str, before: list[str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "slurm").mkdir()
    site = "container=(signfuse exec --bind 'my data')\nexport SITE=${UNSET}set\n"
    (tmp_path / "slurm" / "site.sh").write_text(site)
    status, printed, error = run_script(script, tmp_path, "one", "two", "three", **ARRAY, **NODES)
    assert status == 0, error
    container = ["signfuse", "exec", "--bind", "my data"]
    place = printed.index("my data") - 3
    if not before:  # the container is the command, and the stub prints its own name
        assert printed[place : place + 6] == [*container, *words]
    else:
        assert printed[place - 1 : place + 6] == [*before, *container, *words]
    if script == "evaluate.sh":
        assert printed[-8:] == [*container, "signfuse", "report", "one", "two", "three"][-8:]


def test_a_site_that_fails_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.sh").write_text("echo 'no module cuda' >&2\nfalse\n")
    status, printed, error = run_script("stage1.sh", tmp_path, "demo", **NODES)
    assert (status, printed, error) == (1, [], "no module cuda\n")


def test_the_example_of_a_site_changes_nothing_before_it_is_edited(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    shutil.copy(ROOT / "slurm" / "site.example.sh", tmp_path / "slurm" / "site.sh")
    _, printed, _ = run_script("pack.sh", tmp_path, "table", **ARRAY)
    assert printed[:2] == ["signfuse", "pack"]


@pytest.mark.parametrize("name", [(), ("--name", "beams8")])
def test_an_evaluation_is_followed_by_its_report(tmp_path: Path, name: tuple[str, ...]) -> None:
    words = ("runs/my run/finetune", "--split", "test", *name)
    decoding = ("evaluation.num_beams=8",)
    _, printed, _ = run_script("evaluate.sh", tmp_path, *words, *decoding, **NODES)
    assert printed[0] == "srun"
    report = printed.index("signfuse")
    asked = ["-m", "signfuse_dist.cli", "evaluate", *words, *decoding]
    assert printed[report - len(asked) : report] == asked
    assert printed[report:] == ["signfuse", "report", *words]


def launched(tmp_path: Path, **more: str) -> str:
    """The words of the launcher on the second node, through the very shell text of the script."""
    _, printed, _ = run_script("stage1.sh", tmp_path, "demo", **NODES)
    start, end = printed.index("-c") + 1, printed.index("launcher")
    text = "\n".join(printed[start:end]).replace("exec accelerate", "echo")
    environment = {"LAUNCH": "L", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "20007", **more}
    done = subprocess.run(
        ["bash", "-c", text, "launcher", "-m", "signfuse_dist.train"],
        check=True,
        text=True,
        capture_output=True,
        env={**os.environ, "SLURM_NNODES": "2", "SLURM_NODEID": "1", **environment},
    )
    return done.stdout.strip()


def test_each_launcher_is_told_its_place(tmp_path: Path) -> None:
    assert launched(tmp_path, PROCESSES_PER_NODE="4") == (
        "launch --config_file L --num_machines 2 --machine_rank 1 --num_processes 8 "
        "--main_process_ip 10.0.0.1 --main_process_port 20007 -m signfuse_dist.train"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "launch/cluster_zero2.yaml 1 10.0.0.1 20007"),
        ({"SLURM_GPUS_ON_NODE": "8"}, "launch/cluster_zero2.yaml 8 10.0.0.1 20007"),
        (
            {
                "SLURM_GPUS_ON_NODE": "8",
                "PROCESSES_PER_NODE": "2",
                "LAUNCH": "my launch.yaml",
                "MASTER_PORT": "5",
            },
            "my launch.yaml 2 10.0.0.1 5",
        ),
    ],
)
def test_launch_file_processes_and_port_are_overridden_by_the_environment(
    tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    (tmp_path / "probe.sh").write_text(
        "source slurm/environment.sh\nprepare_launchers\n"
        'echo "$LAUNCH $PROCESSES_PER_NODE $MASTER_ADDR $MASTER_PORT"\n'
    )
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    stub = tmp_path / ".venv" / "bin" / "scontrol"
    stub.parent.mkdir(parents=True)
    stub.write_text(SCONTROL)
    stub.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", "probe.sh"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={**kept, **NODES, **given},
    )
    assert done.stdout.strip() == expected
