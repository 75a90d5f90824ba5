"""The pipeline's words, and what it asks sbatch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from helpers.repository import ROOT
from signfuse_dist.errors import UserError
from signfuse_dist.jobs.pipeline import Request, main, read_request

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
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"train.output={tmp_path}/my runs"
    assert main(["demo", "--partition", "long", output]) == 0
    found = submitted(calls)
    assert found[0] == ["--parsable", "--partition", "long", "slurm/stage1.sh", "demo", output]
    for number, (script, call) in enumerate(zip(("2", "3"), found[1:3], strict=True)):
        assert call == [
            "--parsable",
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
    assert capsys.readouterr().out.splitlines() == [
        "contrastive\t101",
        "alignment\t102",
        "finetune\t103",
        "evaluate\t104",
    ]


def test_only_the_stages_that_there_are_are_submitted(calls: Path) -> None:
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
    calls: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "3")
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "sbatch refuses finetune: sbatch: error: invalid partition" in error
    assert calls.read_text().splitlines()[-1] == "cancelled 101 102"


def test_the_script_is_run_from_the_project_folder(calls: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("SLURM_SUBMIT_DIR", None)
    done = subprocess.run(
        ["bash", "slurm/pipeline.sh", "demo", "--nodes=2"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "evaluate\t104"
    assert submitted(calls)[0][1] == "--nodes=2"
