"""The loop and its checkpoints, in one process: a writer that is slow, or has no room."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.lone_objective import LoneObjective  # tests/helpers/lone_objective.py
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint, checkpoint_files
from signfuse_dist.engine.average import WeightAverage
from signfuse_dist.engine.checkpoint import Snapshot
from signfuse_dist.engine.loop import Loop, Step, make_optimizer
from signfuse_dist.engine.selection import Selection
from signfuse_dist.engine.timing import Marks
from signfuse_dist.errors import DamagedError, MachineError, UserError
from signfuse_dist.files import read_state
from signfuse_dist.model.norm import BatchNorm
from signfuse_dist.plan import make_plan

CLIPS, BATCH, EPOCHS = 8, 2, 3
STEPS = CLIPS // BATCH * EPOCHS
WRITE = checkpoint.write_snapshot


@dataclass(frozen=True)
class Numbers:
    """A batch of four numbers a clip, over three steps."""

    x: Tensor
    faults: tuple[str, ...] = ()

    @property
    def frame_lengths(self) -> Tensor:
        return torch.full((len(self.x),), 3)

    @property
    def weight(self) -> Tensor:
        return torch.ones(len(self.x))

    @property
    def work(self) -> tuple[float, float]:
        return 3.0 * len(self.x), 3.0 * len(self.x)

    def to(self, device: torch.device) -> Numbers:
        return self


class Squares(LoneObjective):
    """What is minimised: squares of the model's output."""

    def __init__(self) -> None:
        self.weights = {"language": 1.0}

    def counts(self, batch: Numbers) -> dict[str, float]:
        return {"language": float(len(batch.x))}

    def __call__(
        self, model: nn.Module, batch: Numbers, compared: None = None
    ) -> dict[str, Tensor]:
        return {"language": model(batch.x).square().sum()}

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return {**means, "total": means["language"]}


class Network(nn.Module):
    """A projection, a batch norm and dropout, so that statistics and randomness count."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = BatchNorm(4, policy)
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        counted = torch.ones(len(x), x.shape[2], dtype=torch.bool)
        mixed = self.norm(self.first(x), counted)
        out: Tensor = self.last(nn.functional.dropout(mixed, 0.1, self.training))
        return out


def clips(
    start: int, faults: dict[int, str] | None = None, steps: int = STEPS
) -> Iterator[Numbers]:
    """Each step's clips are a function of the step."""
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        named = (faults or {}).get(step)
        yield Numbers(torch.randn(BATCH, 4, 3, generator=generator), (named,) if named else ())


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """One start of a run in a folder: goes on from its checkpoint where there is one."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        policy: str = "sync",
        development: Callable[[], dict[str, float]] | None = None,
        epochs: int = EPOCHS,
        **train: Any,
    ) -> None:
        values = {"checkpoint_steps": 2, "log_steps": 1, "keep_checkpoints": 9, **train}
        config = TrainConfig(
            micro_batch_size=BATCH,
            global_batch_size=BATCH,
            precision="fp32",
            gradient_clipping=1.0,
            **values,
        )
        stage = StageConfig(name="finetune", epochs=epochs, learning_rate=1e-2, warmup_epochs=1)
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        self.model = Network(policy)
        self.found = checkpoint.agree_on_latest(self.checkpoints, accelerator, print)
        if self.found:
            checkpoint.load_weights(self.found.path, self.model)
        prepared, optimizer = accelerator.prepare(
            self.model, make_optimizer(self.model, stage.learning_rate, 0.01)
        )
        self.start = self.found.step if self.found else 0
        if self.found:
            checkpoint.load_optimizer(self.found.path, accelerator, prepared, optimizer, self.start)
        self.average = None
        if config.weight_average is not None:
            self.average = WeightAverage(self.model, config.weight_average)
            if self.found:
                self.average.load(checkpoint.read_average(self.found.path))
        self.loop = Loop(
            step=Step(
                accelerator=accelerator,
                model=prepared,
                optimizer=optimizer,
                objective=Squares(),
                plan=make_plan(CLIPS, stage, config, 1),
                stage=stage,
                train=config,
                average=self.average,
            ),
            folder=folder,
            marks=Marks(),
            identity={"stage": "finetune"},
            development=development,
            rising={"rises"},
            selection=Selection(config.patience, **(self.found.selection if self.found else {})),
        )

    def train(self, source: Iterator[Numbers] | None = None) -> bool:
        broken = self.found.broken_clips if self.found else 0
        return self.loop.run(source or clips(self.start), self.start, self.model.train, broken)

    def state(self, step: int) -> dict[str, Any]:
        return read_state(self.checkpoints / f"step_{step:08d}")

    def tensors(self, step: int) -> dict[str, Tensor]:
        folder = self.checkpoints / f"step_{step:08d}"
        names = ("weights.safetensors", "optimizer.safetensors")
        return {key: value for name in names for key, value in load_file(folder / name).items()}

    def averaged(self, step: int) -> dict[str, Tensor]:
        return load_file(self.checkpoints / f"step_{step:08d}" / "average.safetensors")

    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class Interrupted(Exception):
    """What a test does in the place of kill -9."""


def interrupted_after(step: int, start: int) -> Iterator[Numbers]:
    for number, batch in enumerate(clips(start), start + 1):
        if number > step:
            raise Interrupted
        yield batch


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
