"""Which checkpoint becomes the model: development scores of a run, and patience with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from helpers.loop_run import (
    EPOCHS,
    STEPS,
    Interrupted,
    Run,
    assert_same,
    clips,
    interrupted_after,
)
from signfuse_dist.engine import checkpoint, checkpoint_files


def test_development_is_scored_at_its_epochs_and_at_the_end(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    scores = iter([2.0, 3.0])
    scored: list[int] = []

    def development() -> dict[str, float]:
        scored.append(len(run.lines()))
        return {"dev_language": next(scores)}

    run = Run(
        tmp_path / "run",
        accelerator,
        development=development,
        dev_epochs=2,
        checkpoint_steps=99,
        log_steps=3,
        keep_checkpoints=1,
    )
    assert run.train()
    lines = {line["step"]: line for line in run.lines()}
    assert list(lines) == [3, 6, 8, 9, 12], "a line of its own where there is a score"
    assert {step: line.get("dev_language") for step, line in lines.items()} == {
        3: None,
        6: None,
        8: 2.0,
        9: None,
        12: 3.0,
    }
    assert len(scored) == 2
    assert run.state(8)["score"] == 2.0
    assert run.state(8)["development"] == {"dev_language": 2.0}
    best = checkpoint_files.find_best(run.checkpoints, pytest.fail)
    assert best is not None
    assert best.step == 8, "kept beside the newest, which is 12"
    assert run.state(12)["score"] == 3.0


def test_no_development_score_is_no_candidate(tmp_path: Path, accelerator: Accelerator) -> None:
    run = Run(tmp_path / "run", accelerator, development=dict)
    assert run.train()
    assert checkpoint_files.find_best(run.checkpoints, pytest.fail) is None


def test_a_score_is_of_the_average_and_training_has_its_own_weights_back(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    seen: list[dict[str, Tensor]] = []

    def look() -> dict[str, float]:
        seen.append({n: t.clone() for n, t in checkpoint.trained_state(run.model).items()})
        return {"dev": 1.0}

    run = Run(tmp_path / "run", accelerator, development=look, weight_average=0.9)
    plain = Run(tmp_path / "plain", accelerator)
    assert run.train()
    assert plain.train()
    assert_same(run.tensors(STEPS), plain.tensors(STEPS))
    assert len(seen) == EPOCHS
    assert_same(seen[-1], run.averaged(STEPS))
    assert not torch.equal(seen[-1]["first.weight"], run.tensors(STEPS)["first.weight"])


@pytest.mark.parametrize(
    ("name", "values"), [("falls", (3.0, 3.0, 4.0, 1.0)), ("rises", (3.0, 3.0, 2.0, 9.0))]
)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_stage_ends_when_no_score_was_better_for_so_long_also_where_it_was_stopped_between(
    tmp_path: Path,
    accelerator: Accelerator,
    name: str,
    values: tuple[float, ...],
    stopped: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scores of the epochs are no better than the first; with patience 2 the third is the last."""
    scored: list[float] = []

    def development() -> dict[str, float]:
        scored.append(values[len(scored)])
        return {name: scored[-1], "beside": 0.0}

    def run() -> Run:
        return Run(tmp_path / "run", accelerator, development=development, patience=2, epochs=4)

    if stopped:  # after the second score, which counts as one that was waited for
        first = run()
        with pytest.raises(Interrupted):
            first.train(interrupted_after(9, 0))
        assert first.state(8)["selection"]["waited"] == 1
    last = run()
    assert last.start == (8 if stopped else 0)
    assert last.train(clips(last.start, steps=16))
    assert last.loop.done == 12
    assert scored == list(values[:3])
    assert last.state(12)["score"] == (-values[2] if name == "rises" else values[2])
    assert "the stage ends after step 12 of 16: 2 development scores" in capsys.readouterr().out
    again = run()  # a run that was killed before its model was written has nothing left to train
    assert again.train(iter(()))
    assert again.loop.done == 12
