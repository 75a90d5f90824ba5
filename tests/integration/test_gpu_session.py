"""`python benchmarks/gpu_session.py --rehearse`: every part runs, its figures are in a table."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_session
from benchmarks.gpu_session import main
from helpers.project import Project, environment
from signfuse_dist.data.pack import PackConfig, pack


def test_a_machine_without_a_gpu_is_told_to_rehearse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--out", str(tmp_path)]) == 2
    assert "--rehearse" in capsys.readouterr().err


def test_shards_that_are_not_the_demos_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--rehearse", "--shards", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert f"--shards {tmp_path / 'none'}" in capsys.readouterr().err


def test_parts_without_time_are_named_and_do_not_fail(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "--rehearse",
        "--seconds",
        "1",
        "--out",
        str(out),
        "--shards",
        str(_demo(project, tmp_path)),
    ]
    assert main(words) == 0
    written = (out / "benchmarks.md").read_text(encoding="utf-8")
    assert "| train node_ddp | 0 | not run: no time was left |" in written
    assert "A rehearsal: these figures mean nothing" in written


@pytest.mark.long
def test_every_part_runs_and_has_its_figures(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 steps an epoch: eight epochs are enough to be stopped in their middle."""
    size = replace(gpu_session._REHEARSAL, epochs=8, checkpoint_steps=2)
    monkeypatch.setattr(gpu_session, "_REHEARSAL", size)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    words = ["--rehearse", "--seconds", "1500", "--out", str(out)]
    assert main([*words, "--shards", str(_demo(project, tmp_path))]) == 0
    written = (out / "benchmarks.md").read_text(encoding="utf-8")
    for bits in ("the same run twice", "twice with train.deterministic", "stopped and gone on"):
        (row,) = (line for line in written.splitlines() if line.startswith("| ") and bits in line)
        assert "none, bit for bit" in row
    for stage in ("contrastive", "alignment", "finetune"):
        assert written.count(f"| node_zero2 | {stage} |") == 1
    assert "attention varlen | status 2" in written  # no GPU
    assert " calls |" in written
    assert "not run" not in written


def _demo(project: Project, tmp_path: Path) -> Path:
    """The project's clips and LLM as the demo's, at its size of frames."""
    shards = tmp_path / "shards"
    for split in ("train", "dev", "test"):
        config = PackConfig(frame_size=48, fps=10)
        pack("synthetic", project.folder / "corpus", split, shards / split, config, workers=0)
    shutil.copytree(project.folder / "llm", shards / "tiny_llm")
    return shards
