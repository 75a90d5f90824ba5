"""An ablation through its command: killed in the middle, gone on with, shared between two tasks."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.project import Project, environment
from helpers.repository import ROOT

pytestmark = [pytest.mark.alone, pytest.mark.long]

ROWS = [
    {"name": "whole"},
    {"name": "direct", "words": ["train.stages=[finetune]"], "below": "whole"},
    {"name": "joints", "below": "whole", "words": [
        "model.streams=skeletal", "loss.contrastive_weight=0", "train.stages=[finetune]"]},
]  # fmt: skip


@pytest.fixture
def names(tmp_path: Path) -> str:
    content = {"title": "Small", "paper": "none", "full": "whole", "rows": ROWS}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def command(project: Project, names: str, output: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "signfuse_dist.cli",
        "ablate",
        names,
        project.experiment,
        f"train.output={output}",
        "--split",
        "test",
        "--launch",
        "launch/cpu_zero2.yaml",
        "--num-processes",
        "1",
        *options,
    ]


def run(words: list[str]) -> str:
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def table(output: Path) -> dict[str, dict[str, str]]:
    path = output / "ablation" / "tables" / "small" / "small" / "table.csv"
    with path.open(encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def scores(output: Path) -> dict[str, str]:
    return {name: row["BLEU-1"] + row["METEOR"] for name, row in table(output).items()}


def test_a_killed_ablation_goes_on_and_ends_as_two_tasks_end(
    project: Project, names: str, tmp_path: Path
) -> None:
    killed, shared = tmp_path / "killed", tmp_path / "shared"
    with subprocess.Popen(
        command(project, names, killed),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 400
        # In the second stage, after a checkpoint of it.
        while not list(killed.glob("ablation/*/small/alignment/checkpoints/step_*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tree = psutil.Process(process.pid)
        for child in [*tree.children(recursive=True), tree]:
            child.kill()
    first = next(killed.glob("ablation/*/small/contrastive/model")).resolve()
    trained_before = first.stat().st_ino
    said = run(command(project, names, killed, "--collect"))
    assert "whole, seed 0: missing: stage alignment is not trained" in said
    run(command(project, names, killed))
    assert first.stat().st_ino == trained_before
    found = table(killed)
    assert list(found) == ["whole", "direct", "joints"]
    for row in found.values():
        assert row["seeds"] == "0"
        assert int(row["trained parameters"].replace(",", "")) > 0
        assert float(row["seconds a step"]) > 0
    assert found["joints"]["trained parameters"] != found["whole"]["trained parameters"]
    scored = list(killed.glob("ablation/*/small/finetune/evaluation/test/scores.json"))
    assert len(scored) == 3
    for file in scored:  # the control that needs no decoding
        assert json.loads(file.read_bytes())["controls"].keys() == {"shuffled"}

    tasks = [
        subprocess.Popen(
            command(project, names, shared, "--task-id", str(task), "--num-tasks", "2"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    printed = [task.communicate(timeout=900)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    together = "".join(printed)
    assert together.count(": started") == 8  # 3 + 1 + 1 stages, and 3 evaluations, each once
    assert scores(shared) == scores(killed)
    shutil.rmtree(shared)
