"""The loop and its checkpoints, in one process: a writer that is slow, or has no room."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from helpers.loop_run import (
    CLIPS,
    STEPS,
    Interrupted,
    Numbers,
    Run,
    assert_same,
    clips,
    interrupted_after,
)
from signfuse_dist.engine import checkpoint, checkpoint_files
from signfuse_dist.engine.checkpoint import Snapshot
from signfuse_dist.errors import DamagedError, MachineError, UserError

WRITE = checkpoint.write_snapshot


@pytest.mark.parametrize("policy", ["sync", "local"])
def test_an_interrupted_run_ends_with_the_tensors_of_an_undisturbed_one(
    tmp_path: Path, accelerator: Accelerator, policy: str
) -> None:
    whole = Run(tmp_path / "whole", accelerator, policy)
    assert whole.train()
    for step in (3, 4, 9):
        run = Run(tmp_path / "parts", accelerator, policy)
        with pytest.raises(Interrupted):
            run.train(interrupted_after(step, run.start))
    run = Run(tmp_path / "parts", accelerator, policy)
    assert run.start == 8
    assert run.train()
    assert_same(run.tensors(STEPS), whole.tensors(STEPS))
    assert [line["step"] for line in run.lines()] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("policy", ["sync", "local"])
def test_a_checkpoint_holds_the_running_statistics_and_gives_them_back(
    tmp_path: Path, accelerator: Accelerator, policy: str
) -> None:
    run = Run(tmp_path / "run", accelerator, policy)
    run.train()
    tensors = run.tensors(STEPS)
    assert torch.equal(tensors["norm.running_mean"], run.model.norm.running_mean)
    assert not torch.equal(tensors["norm.running_var"], torch.ones(4))
    again = Run(tmp_path / "run", accelerator, policy)
    x = next(clips(0)).x
    assert torch.equal(again.model.eval()(x), run.model.eval()(x))


def test_steps_are_taken_while_a_checkpoint_is_being_written(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is written is the state of its own step, not of those taken meanwhile."""
    whole = Run(tmp_path / "whole", accelerator)
    whole.train()
    allowed = threading.Event()

    def write_when_allowed(folder: Path, snapshot: Snapshot, keep: int) -> None:
        assert allowed.wait(60)
        WRITE(folder, snapshot, keep)

    def watched(run: Run) -> Iterator[Numbers]:
        for step, batch in enumerate(clips(0)):
            if step == 7:  # the checkpoint of step 4 is not on the disk, and steps 5 to 7 are done
                assert [line["step"] for line in run.lines()] == list(range(1, 8))
                assert not list(run.checkpoints.glob("step_*"))
                allowed.set()
            yield batch

    monkeypatch.setattr(checkpoint, "write_snapshot", write_when_allowed)
    run = Run(tmp_path / "slow", accelerator, checkpoint_steps=4)
    assert run.train(watched(run))
    assert allowed.is_set()
    for step in (4, 8, STEPS):
        assert_same(run.tensors(step), whole.tensors(step))


def test_one_checkpoint_is_written_at_a_time_and_waiting_is_said(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running: list[int] = []
    most: list[int] = []
    slow = threading.Event()

    def write(folder: Path, snapshot: Snapshot, keep: int) -> None:
        running.append(snapshot.step)
        most.append(len(running))
        slow.wait(0.2)
        WRITE(folder, snapshot, keep)
        running.remove(snapshot.step)

    monkeypatch.setattr(checkpoint, "write_snapshot", write)
    run = Run(tmp_path / "run", accelerator)
    assert run.train()
    assert most == [1] * (STEPS // 2)
    assert "waiting for the checkpoint of step 2 to be written" in "".join(capsys.readouterr())
    assert len(checkpoint_files.list_checkpoints(run.checkpoints)) == STEPS // 2


def full_at(*steps: int) -> Callable[[Path, Snapshot, int], None]:
    def write(folder: Path, snapshot: Snapshot, keep: int) -> None:
        if snapshot.step in steps:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        WRITE(folder, snapshot, keep)

    return write


def test_a_checkpoint_that_finds_no_room_is_named_and_training_goes_on(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkpoint, "write_snapshot", full_at(4, 6))
    run = Run(tmp_path / "run", accelerator)
    assert run.train()
    said = "".join(capsys.readouterr())
    assert "the checkpoint of step 4 could not be written: [Errno 28] No space left" in said
    assert said.count("the last whole one is of step 2; training goes on") == 2
    found = [int(path.name[5:]) for path in checkpoint_files.list_checkpoints(run.checkpoints)]
    assert found == [2, 8, 10, 12]


def test_at_the_end_no_room_is_an_error_that_names_the_last_whole_checkpoint(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path / "whole", accelerator)
    whole.train()
    monkeypatch.setattr(checkpoint, "write_snapshot", full_at(STEPS))
    run = Run(tmp_path / "run", accelerator)
    with pytest.raises(MachineError) as refused:
        run.train()
    assert refused.value.status == 75
    said = str(refused.value)
    assert said.startswith("the checkpoint of step 12 could not be written: [Errno 28] No space")
    assert said.endswith(
        "; the last whole one is of step 10, and what was trained since, up to step 12, is lost. "
        "Make room there, then run the same command again: it is trained again"
    )
    monkeypatch.undo()
    again = Run(tmp_path / "run", accelerator)
    assert again.start == 10
    assert again.train()
    assert_same(again.tensors(STEPS), whole.tensors(STEPS))


def test_a_disk_that_stays_full_ends_the_job_with_the_steps_that_are_lost(
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Run(tmp_path / "whole", accelerator, checkpoint_steps=1)
    whole.train()
    monkeypatch.setattr(checkpoint, "write_snapshot", full_at(*range(3, STEPS + 1)))
    run = Run(tmp_path / "run", accelerator, checkpoint_steps=1, failed_checkpoints=4)
    with pytest.raises(MachineError) as refused:
        run.train()
    said = "".join(capsys.readouterr())
    assert "4 in a row could not be, so training stops (train.failed_checkpoints)" in said
    ended = run.lines()[-1]["step"]
    assert ended in (6, 7, 8), (
        "the fourth is of step 6, and is known at the next save at the latest"
    )
    assert f"the checkpoint of step {ended} could not be written" in str(refused.value)
    lost = f"is of step 2, and what was trained since, up to step {ended}, is lost"
    assert lost in str(refused.value)
    monkeypatch.undo()
    again = Run(tmp_path / "run", accelerator, checkpoint_steps=1)
    assert again.start == 2
    assert again.train()
    assert_same(again.tensors(STEPS), whole.tensors(STEPS))


def test_failures_with_a_whole_checkpoint_between_do_not_add_up(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (2, 4, 8, 10)
    monkeypatch.setattr(checkpoint, "write_snapshot", full_at(*steps))
    run = Run(tmp_path / "run", accelerator, failed_checkpoints=3)
    assert run.train()
    assert [path.name[-2:] for path in checkpoint_files.list_checkpoints(run.checkpoints)] == [
        "06",
        "12",
    ]


def test_a_disk_with_room_for_the_last_try_loses_nothing(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training stops as on request: every step is in the checkpoint."""
    refused = threading.Event()

    def write(folder: Path, snapshot: Snapshot, keep: int) -> None:
        if snapshot.step == 2:
            assert refused.wait(60)
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        WRITE(folder, snapshot, keep)

    def refused_after_three(start: int) -> Iterator[Numbers]:
        for step, batch in enumerate(clips(start)):
            if step == 3:
                refused.set()
                time.sleep(0.2)
            yield batch

    monkeypatch.setattr(checkpoint, "write_snapshot", write)
    run = Run(tmp_path / "run", accelerator, failed_checkpoints=1, checkpoint_steps=2)
    assert not run.train(refused_after_three(0))
    assert run.lines()[-1]["step"] == 3
    assert Run(tmp_path / "run", accelerator).start == 3


def test_a_stop_right_after_a_failed_checkpoint_says_that_its_steps_are_lost(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_snapshot", full_at(4))
    run = Run(tmp_path / "run", accelerator, checkpoint_steps=4)

    def stopped_after_four(start: int) -> Iterator[Numbers]:
        for step, batch in enumerate(clips(start)):
            if step == 4:
                time.sleep(0.2)  # the refusal is known, and was said
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    with pytest.raises(MachineError, match="what was trained since, up to step 4, is"):
        run.train(stopped_after_four(0))


def test_another_error_of_the_writer_is_not_taken_for_a_full_disk(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, snapshot: Snapshot, keep: int) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(checkpoint, "write_snapshot", fail)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        Run(tmp_path / "run", accelerator).train()


def test_a_checkpoint_says_where_the_data_stands_and_what_the_run_is(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(tmp_path / "run", accelerator)
    run.train()
    state = run.state(6)
    assert state["data"] == {"seed": 0, "epoch": 1, "step": 2, "clips": CLIPS}
    assert state["run"] == {"stage": "finetune"}
    assert (state["score"], state["development"]) == (None, {})


def test_clips_of_the_epoch_that_were_broken_before_a_stop_count_after_it(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    """One of 8 clips is allowed: the second of an epoch stops the run, a stop between or not."""
    faults = {4: "clip four: torn", 6: "clip six: torn"}
    run = Run(tmp_path / "run", accelerator, max_broken_share=1 / CLIPS)
    with pytest.raises(Interrupted):
        run.train(
            Numbers(batch.x, (faults[step],) if step in faults else ())
            for step, batch in enumerate(interrupted_after(6, 0))
        )
    assert run.state(6)["broken_clips"] == 1
    again = Run(tmp_path / "run", accelerator, max_broken_share=1 / CLIPS)
    assert again.start == 6
    with pytest.raises(UserError, match="step 7: 2 of 8 clips"):
        again.train(clips(6, faults))
    assert again.state(6)["broken_clips"] == 1


def test_an_average_of_the_weights_is_that_of_the_steps_and_goes_on_to_the_bit(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    plain = Run(tmp_path / "plain", accelerator, checkpoint_steps=1, keep_checkpoints=STEPS)
    assert plain.train()
    run = Run(tmp_path / "whole", accelerator, weight_average=0.4)
    start = {name: value.clone() for name, value in run.model.named_parameters()}
    start |= {name: value.clone() for name, value in run.model.named_buffers()}
    assert run.train()
    mean = start
    for step in range(1, STEPS + 1):
        weights = load_file(plain.checkpoints / f"step_{step:08d}" / "weights.safetensors")
        decay = min(0.4, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, 5/14, 0.4, ...
        mean = {n: decay * mean[n] + (1 - decay) * weights[n] for n in weights}
    found = run.averaged(STEPS)
    assert found.keys() == mean.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, mean[name])
    assert_same(run.tensors(STEPS), plain.tensors(STEPS))  # training does not notice it
    for step in (3, 9):
        part = Run(tmp_path / "parts", accelerator, weight_average=0.4)
        with pytest.raises(Interrupted):
            part.train(interrupted_after(step, part.start))
    last = Run(tmp_path / "parts", accelerator, weight_average=0.4)
    assert last.start == 8
    assert last.train()
    assert_same(last.averaged(STEPS), found)
    assert last.average is not None
    last.average.apply()
    assert all(torch.equal(p, found[name]) for name, p in last.model.named_parameters())


def test_a_checkpoint_without_the_average_that_a_run_keeps_is_damaged(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = Run(tmp_path / "run", accelerator)
    assert run.train()
    found = checkpoint_files.find_latest(run.checkpoints, pytest.fail)
    assert found is not None
    checkpoint.refuse_other_tensors(found, run.model)
    with pytest.raises(DamagedError, match=r"it has no average\.safetensors"):
        checkpoint.refuse_other_tensors(found, run.model, averaged=True)
