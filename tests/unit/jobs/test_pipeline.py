"""The pipeline's words, and what it asks sbatch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.little_job import overrides, write_job
from helpers.repository import ROOT
from signfuse_dist.config import RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.jobs import pipeline
from signfuse_dist.jobs.pipeline import Request, count_processes, main, read_request
from signfuse_dist.preflight.check import Target

SBATCH = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word" >> "$CALLS"; done
echo . >> "$CALLS"
number=$(grep -c '^\\.$' "$CALLS")
[ "$number" != "$REFUSED" ] || { echo 'sbatch: error: invalid partition' >&2; exit 1; }
echo "$((100 + number));cluster"
"""
SCANCEL = '#!/bin/sh\nprintf "cancelled %s\\n" "$*" >> "$CALLS"\n'


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stubs of sbatch and scancel note their words, one a line, each call ending in a dot."""
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("REFUSED", "0")
    return tmp_path / "calls"


Checked = list[tuple[list[str], Target]]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """What would have been checked: the stages, and where they would run. All is in order."""
    found: Checked = []

    def check(runs: Sequence[RunConfig], target: Target) -> None:
        found.append(([run.stage.name for run in runs], target))

    monkeypatch.setattr(pipeline, "refuse_errors", check)
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


def submitted(calls: Path) -> list[list[str]]:
    return [call.splitlines() for call in calls.read_text().split(".\n") if call]


def test_options_of_sbatch_may_stand_with_and_without_the_equals_sign() -> None:
    words = ["demo", "--partition", "long", "--nodes=2", "train.seed=3", "-t", "1:00", "model=tiny"]
    assert read_request(words) == Request(
        "demo", ("--partition", "long", "--nodes=2", "-t", "1:00"), ("train.seed=3", "model=tiny")
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "usage: "),
        (["--nodes=2", "demo"], "usage: "),
        (["train.seed=1"], "usage: "),
        (["demo", "long"], "'long' is no option"),
        (["demo", "--nodes=2", "long"], "'long' is no option"),
        (["demo", "--dependency=afterok:3"], "the pipeline decides that itself"),
        (["demo", "-d", "afterok:3"], "the pipeline decides that itself"),
        (["demo", "--array=0-3"], "the pipeline decides that itself"),
    ],
)
def test_words_that_are_neither_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        read_request(words)


def test_each_job_waits_for_the_one_before(
    calls: Path, checked: Checked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"train.output={tmp_path}/my runs"
    assert main(["demo", "--partition", "long", output]) == 0
    found = submitted(calls)
    first = ["--parsable", "--job-name=demo-contrastive", "--partition", "long"]
    assert found[0] == [*first, "slurm/stage1.sh", "demo", output]
    stages = (("2", "alignment"), ("3", "finetune"))
    for number, ((script, stage), call) in enumerate(zip(stages, found[1:3], strict=True)):
        assert call == [
            "--parsable",
            f"--job-name=demo-{stage}",
            "--partition",
            "long",
            f"--dependency=afterok:{101 + number}",
            "--kill-on-invalid-dep=yes",
            f"slurm/stage{script}.sh",
            "demo",
            output,
        ]
    assert found[3][-4:] == [
        "slurm/evaluate.sh",
        f"{tmp_path}/my runs/demo/finetune",
        "--split",
        "test",
    ]
    assert "--dependency=afterok:103" in found[3]
    assert "--job-name=demo-evaluate-test" in found[3]
    assert capsys.readouterr().out.splitlines() == [
        "contrastive\t101",
        "alignment\t102",
        "finetune\t103",
        "evaluate\t104",
    ]


def test_only_the_stages_that_there_are_are_submitted(calls: Path, checked: Checked) -> None:
    assert main(["demo", "train.stages=[contrastive,finetune]"]) == 0
    scripts = [next(w for w in call if w.startswith("slurm/")) for call in submitted(calls)]
    assert scripts == ["slurm/stage1.sh", "slurm/stage3.sh", "slurm/evaluate.sh"]


def test_an_error_of_the_last_stage_is_found_before_anything_is_submitted(
    calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "train.sed=1"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not calls.exists()


def test_when_one_job_is_refused_those_before_it_are_cancelled(
    calls: Path,
    checked: Checked,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFUSED", "3")
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "sbatch refuses finetune: sbatch: error: invalid partition" in error
    assert calls.read_text().splitlines()[-1] == "cancelled 101 102"


def test_the_stages_that_are_left_are_checked_as_the_scripts_will_run_them(
    calls: Path, checked: Checked, tmp_path: Path
) -> None:
    (tmp_path / "demo" / "contrastive" / "model").mkdir(parents=True)
    assert main(["demo", f"train.output={tmp_path}", "--nodes", "2"]) == 0
    ((stages, target),) = checked
    assert stages == ["alignment", "finetune"]
    assert target == Target(8, Path("launch/cluster_zero2.yaml"), started_by="sbatch")


@pytest.mark.parametrize(
    ("options", "environment", "processes"),
    [
        ([], {}, 4),
        (["--nodes=2", "--gpus-per-node", "a100:8"], {}, 16),
        (["-N", "3", "--gpus-per-node=0"], {}, 3),
        (["--nodes=2-4"], {}, 8),
        (["--nodes=2"], {"PROCESSES_PER_NODE": "3"}, 6),
    ],
)
def test_processes_are_counted_as_the_batch_script_counts_them(
    options: list[str], environment: dict[str, str], processes: int
) -> None:
    script = (ROOT / "slurm" / "stage1.sh").read_text("utf-8")
    assert count_processes(options, script, environment) == processes


def test_what_would_end_a_job_is_said_before_anything_is_submitted(
    calls: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(job, tmp_path / "job")
    (tmp_path / "job" / "shards" / "train" / "shard-000001.tar").unlink()
    (tmp_path / "job" / "llm" / "tokenizer.json").unlink()
    assert main(["demo", "--gpus-per-node=0", *overrides(tmp_path / "job")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: demo on 1 processes: nothing was started; errors (2)")
    assert "shard-000001.tar: the shard is missing" in error
    assert "lacks a tokenizer" in error
    assert not calls.exists()


def test_the_script_checks_and_submits_from_the_project_folder(calls: Path, job: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["--nodes=2", "train.micro_batch_size=1"]
    done = subprocess.run(
        ["bash", "slurm/pipeline.sh", "demo", *words, *overrides(job)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "evaluate\t104"
    assert submitted(calls)[0][2] == "--nodes=2"
