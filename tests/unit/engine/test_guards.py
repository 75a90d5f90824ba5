"""A step that is not finite is taken by nobody: it stops the run, or it is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from helpers.broken_steps import GRADIENT, INPUT, LOSS, batches, little_loop, little_plan
from signfuse_dist.engine import checkpoint, checkpoint_files
from signfuse_dist.engine.guards import MAX_IN_A_ROW, marked
from signfuse_dist.errors import UserError


def run(folder: Path, steps: list[str], **changes: Any) -> bool:
    folder.mkdir(exist_ok=True)
    plan, train = little_plan(len(steps), 1, **changes)
    loop, model = little_loop(Accelerator(cpu=True), folder, plan, train)
    return loop.run(batches(steps), 0, model.train)


def files(folder: Path, step: int) -> dict[str, str]:
    """Checksums of what a checkpoint holds: weights and statistics, moments and Adam's steps."""
    state = (folder / "checkpoints" / f"step_{step:08d}" / "state.json").read_text("utf-8")
    return dict(json.loads(state)["files"])


def log(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.0])
def test_a_loss_that_is_not_finite_shows_in_the_gradient(value: float) -> None:
    x = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(marked(5 * x + value), x)
    assert gradient.isfinite() == (value == 3.0)
    assert value != 3.0 or gradient == 5.0


@pytest.mark.parametrize("bad", [LOSS, GRADIENT, INPUT])
def test_by_default_it_stops_the_run_before_anything_has_changed(
    tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"step 3: the (loss|gradient) is not finite") as error:
        run(tmp_path, ["x", "x", bad, "x"])
    assert f"clip 3, {bad}" in str(error.value)
    assert "clip 2" not in str(error.value)
    assert "train.non_finite=skip" in str(error.value)
    assert [line["step"] for line in log(tmp_path)] == [1, 2]
    found = checkpoint_files.find_latest(tmp_path / "checkpoints", print)
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize("bad", [LOSS, GRADIENT, INPUT])
def test_a_step_left_out_leaves_weights_moments_and_statistics_as_they_were(
    tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, ["x", "x", bad, "x"], non_finite="skip")
    assert files(tmp_path, 3) == files(tmp_path, 2)
    assert files(tmp_path, 4) != files(tmp_path, 3)
    assert f"clips of this process: clip 3, {bad}" in capsys.readouterr().out
    lines = log(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 0]
    assert ["total" in line for line in lines] == [True, True, False, True]
    assert all(value == value for line in lines for value in line.values())


def test_a_run_goes_on_after_one_left_out_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    """Adam's own count of steps is in the checkpoint: it is not that of the run."""
    steps = ["x", LOSS, "x", "x"]
    run(tmp_path / "whole", steps, non_finite="skip")
    plan, train = little_plan(4, 1, non_finite="skip")
    accelerator = Accelerator(cpu=True)
    loop, model = little_loop(accelerator, tmp_path / "parts", plan, train)
    part = tmp_path / "whole" / "checkpoints" / "step_00000003"
    checkpoint.load_weights(part, accelerator.unwrap_model(model))
    checkpoint.load_optimizer(part, accelerator, model, loop.step.optimizer, 3)
    (tmp_path / "parts").mkdir()
    rest = iter(list(batches(steps))[3:])
    assert loop.run(rest, 3, model.train)
    assert files(tmp_path / "parts", 4) == files(tmp_path / "whole", 4)


def test_many_in_a_row_stop_the_run_whatever_was_chosen(tmp_path: Path) -> None:
    steps = ["x", LOSS, "x", *[LOSS] * MAX_IN_A_ROW, "x"]
    with pytest.raises(UserError, match=rf"step {3 + MAX_IN_A_ROW}: .*weights are broken"):
        run(tmp_path, steps, non_finite="skip")


def test_nothing_is_saved_before_a_step_was_taken(tmp_path: Path) -> None:
    assert run(tmp_path, [LOSS, LOSS], non_finite="skip")
    assert checkpoint_files.find_latest(tmp_path / "checkpoints", print) is None
