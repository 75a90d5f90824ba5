"""The Slurm scripts: sound shell, and the words that reach the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
STUB = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_that_is_submitted_sources_the_environment_and_can_be_executed(
    script: Path,
) -> None:
    text = script.read_text(encoding="utf-8")
    if script.name != "environment.sh":
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nsource slurm/environment.sh\n" in text
        assert os.access(script, os.X_OK)


def packed_with(folder: Path, *words: str, **slurm: str) -> subprocess.CompletedProcess[str]:
    """Run pack.sh as Slurm runs it, with a `signfuse` that prints its words, one a line."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    stub = folder / ".venv" / "bin" / "signfuse"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return subprocess.run(
        ["bash", "slurm/pack.sh", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**kept, "SLURM_SUBMIT_DIR": str(folder), **slurm},
    )  # fmt: skip


def test_packing_is_shared_by_the_tasks_of_the_array(tmp_path: Path) -> None:
    done = packed_with(
        tmp_path, "table", "--root", "my data/t.tsv", "--split", "train", "--out", "$(out)",
        SLURM_ARRAY_TASK_ID="9", SLURM_ARRAY_TASK_MIN="3", SLURM_ARRAY_TASK_STEP="2",
        SLURM_ARRAY_TASK_COUNT="8", SLURM_CPUS_PER_TASK="16",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "pack", "--workers", "16", "--task-id", "3", "--num-tasks", "8",
        "table", "--root", "my data/t.tsv", "--split", "train", "--out", "$(out)",
    ]  # fmt: skip


def test_packing_that_is_no_array_or_names_no_corpus_says_how_it_is_submitted(
    tmp_path: Path,
) -> None:
    done = packed_with(tmp_path / "a", "table")
    assert done.returncode != 0
    assert "sbatch --array=0-7 slurm/pack.sh" in done.stderr
    done = packed_with(tmp_path / "b", SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 2
    assert "usage: sbatch slurm/pack.sh CORPUS" in done.stderr
