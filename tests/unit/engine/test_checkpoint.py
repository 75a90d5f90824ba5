"""Checkpoints on the disk: which are kept, which are used, and what a full disk leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import dying_writes
from signfuse_dist.engine import checkpoint, checkpoint_files
from signfuse_dist.engine.checkpoint import Snapshot
from signfuse_dist.engine.checkpoint_files import Checkpoint
from signfuse_dist.errors import UserError
from signfuse_dist.files import read_state, write_folder

SIZE = 1 << 18  # elements of a megabyte


def snapshot(step: int, score: float | None = None, size: int = 4, **state: Any) -> Snapshot:
    weights = {"w": torch.full((size,), float(step))}
    moments = {f"w.{key}": torch.full((size,), 2.0 * step) for key in checkpoint_files.MOMENTS}
    said = {
        "data": {"seed": 0, "epoch": 0, "step": step, "clips": 40},
        "broken_clips": 0,
        "development": {},
        "score": score,
        "run": {},
    }
    return Snapshot(step, weights, moments, {**said, **state})


def write(folder: Path, *snapshots: Snapshot, keep: int = 2) -> None:
    for one in snapshots:
        checkpoint.write_snapshot(folder, one, keep)


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoint_files.list_checkpoints(folder)]


def damage(folder: Path, step: int) -> None:
    with (folder / f"step_{step:08d}" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    write(tmp_path, snapshot(1, 3.0), snapshot(2, 1.0), snapshot(3), snapshot(4, 2.0), snapshot(5))
    assert steps(tmp_path) == [2, 4, 5]
    write(tmp_path, snapshot(6, 0.5), snapshot(7), snapshot(8))
    assert steps(tmp_path) == [6, 7, 8], "the best that was is no longer kept"
    found = checkpoint_files.find_best(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 6
    assert float(load_file(found.path / "weights.safetensors")["w"][0]) == 6.0
    assert float(load_file(found.path / "optimizer.safetensors")["w.exp_avg"][0]) == 12.0


def test_of_equal_scores_the_earliest_is_best_and_without_scores_there_is_none(
    tmp_path: Path,
) -> None:
    write(tmp_path / "equal", snapshot(1, 1.0), snapshot(2, 1.0), snapshot(3, 2.0))
    found = checkpoint_files.find_best(tmp_path / "equal", pytest.fail)
    assert found is not None
    assert found.step == 1
    write(tmp_path / "none", snapshot(1), snapshot(2))
    assert checkpoint_files.find_best(tmp_path / "none", pytest.fail) is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    write(tmp_path, snapshot(2, 1.0), snapshot(4, 3.0), snapshot(6, 2.0), keep=3)
    damage(tmp_path, 6)
    damage(tmp_path, 2)
    said: list[str] = []
    found = checkpoint_files.find_latest(tmp_path, said.append)
    assert found is not None
    assert found.step == 4
    assert len(said) == 1
    assert "step_00000006/weights.safetensors is damaged" in said[0]
    said.clear()
    best = checkpoint_files.find_best(tmp_path, said.append)
    assert best is not None
    assert best.step == 4
    assert ["step_00000002" in said[0], "step_00000006" in said[1]] == [True, True]


def test_a_run_that_went_back_before_a_damaged_checkpoint_removes_it(tmp_path: Path) -> None:
    """Else it would count as the newest, and with ``keep=1`` push out the one just written."""
    write(tmp_path, snapshot(2), snapshot(4), snapshot(6, 0.1), keep=3)
    damage(tmp_path, 6)
    write(tmp_path, snapshot(5), keep=1)
    assert steps(tmp_path) == [5]


def test_what_stands_in_the_place_of_a_checkpoint_is_written_over_and_pruned(
    tmp_path: Path,
) -> None:
    """A file, or a link to a folder elsewhere, whose content stays."""
    write(tmp_path / "elsewhere", snapshot(1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_00000001").symlink_to(tmp_path / "elsewhere" / "step_00000001")
    (tmp_path / "run" / "step_00000002").write_text("a file")
    (tmp_path / "run" / "step_00000004").write_text("a file")
    write(tmp_path / "run", snapshot(2), snapshot(3), keep=2)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "step_00000002",
        "step_00000003",
    ]
    assert checkpoint_files.find_latest(tmp_path / "run", pytest.fail) is not None
    assert steps(tmp_path / "elsewhere") == [1]
    assert checkpoint_files.find_latest(tmp_path / "elsewhere", pytest.fail) is not None


def test_tensors_that_the_model_does_not_have_are_damage(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def stored(step: int, left_out: str = "", **more: Tensor) -> None:
        weights = {n: t for n, t in checkpoint.trained_state(model).items() if n != left_out}
        moments = {
            f"{name}.{key}": torch.zeros_like(parameter)
            for name, parameter in model.named_parameters()
            for key in checkpoint_files.MOMENTS
            if name != left_out
        }
        write(tmp_path, replace(snapshot(step), weights={**weights, **more}, moments=moments))

    def used() -> tuple[int, str]:
        said: list[str] = []
        fits = partial(checkpoint.refuse_other_tensors, model=model)
        found = checkpoint_files.find_latest(tmp_path, said.append, fits)
        assert found is not None
        return found.step, "".join(said)

    stored(1)
    assert used() == (1, "")
    stored(2, left_out="1.running_mean")
    step, said = used()
    assert step == 1
    assert "weights.safetensors is of another model" in said
    assert "1 tensors missing ['1.running_mean']" in said
    stored(2, left_out="0.bias")
    assert "1 tensors missing ['0.bias']" in used()[1]
    stored(2, extra=torch.zeros(1))
    assert "1 unknown ['extra']" in used()[1]


@pytest.mark.parametrize("moment", dying_writes.MOMENTS)
def test_a_writer_that_is_killed_leaves_only_whole_checkpoints_by_name(
    tmp_path: Path, moment: str
) -> None:
    write(tmp_path, snapshot(1), snapshot(2))
    child = os.fork()
    if child == 0:
        dying_writes.die_while_writing(moment)
        checkpoint.write_snapshot(tmp_path, snapshot(3), 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    newest = checkpoint_files.find_latest(tmp_path, pytest.fail)
    assert newest is not None
    assert newest.step == (3 if moment in ("after it", "pruning") else 2)
    checkpoint.remove_parts(tmp_path)
    for path in tmp_path.iterdir():
        checkpoint_files.read_checkpoint(path)
    write(tmp_path, snapshot(4))
    assert steps(tmp_path) == [newest.step, 4]


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    for name in ("step_mine", "step_00000001.bak", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / ".step_00000003.part").mkdir()
    write(tmp_path, snapshot(1), snapshot(2), keep=1)
    assert steps(tmp_path) == [2]
    checkpoint.remove_parts(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes", "step_00000001.bak", "step_00000002", "step_mine"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_by_name_and_the_last_checkpoint_stays(small_disk: Path) -> None:
    write(small_disk, snapshot(1, size=SIZE // 4), keep=1)
    with pytest.raises(OSError, match="No space left on device"):
        write(small_disk, snapshot(2, size=SIZE), keep=1)
    assert [path.name for path in small_disk.iterdir()] == ["step_00000001"]
    assert read_state(small_disk / "step_00000001")["step"] == 1
    write(small_disk, snapshot(3, size=SIZE // 4), keep=1)
    assert steps(small_disk) == [3]


def test_a_file_that_cannot_grow_leaves_nothing_of_the_new_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, snapshot(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/step_00000002'"):
            write(tmp_path, snapshot(2, size=SIZE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_failing_writer_of_a_folder_leaves_the_folder_before(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", {"a": lambda path: path.write_text("old")}, {})

    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "f", {"a": fail}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "old"


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    run = {"stage": "finetune", "config": {"train.seed": 0, "loss.temperature": 0.07}}
    data = {"seed": 0, "epoch": 1, "step": 3, "clips": 20}
    write(tmp_path, snapshot(8, run=run, data=data))
    found = checkpoint_files.find_latest(tmp_path, pytest.fail)
    assert found is not None
    checkpoint_files.refuse_other_run(found, {"run": run, "data": data})
    more = {**run["config"], "train.new": 1}  # type: ignore[dict-item]
    checkpoint_files.refuse_other_run(found, {"run": {**run, "config": more}, "data": data})
    other = {"run": {**run, "config": {"train.seed": 1}}, "data": {**data, "clips": 21}}
    with pytest.raises(UserError) as error:
        checkpoint_files.refuse_other_run(found, other)
    assert "run.config.train.seed was 0, is 1; data.clips was 20, is 21" in str(error.value)
    assert str(found.path) in str(error.value)


def test_a_found_checkpoint_says_where_it_was(tmp_path: Path) -> None:
    write(tmp_path, snapshot(7, broken_clips=3))
    state = json.loads((tmp_path / "step_00000007" / "state.json").read_text())
    found = Checkpoint(tmp_path / "step_00000007", state)
    assert (found.step, found.broken_clips) == (7, 3)
