"""Starts of a run of the loop with a little network, in one process and in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.lone_objective import LoneObjective  # tests/helpers/lone_objective.py
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint
from signfuse_dist.engine.average import WeightAverage
from signfuse_dist.engine.loop import Loop, Step, make_optimizer
from signfuse_dist.engine.selection import Selection
from signfuse_dist.engine.timing import Marks
from signfuse_dist.files import read_state
from signfuse_dist.model.norm import BatchNorm
from signfuse_dist.plan import make_plan

CLIPS, BATCH, EPOCHS = 8, 2, 3
STEPS = CLIPS // BATCH * EPOCHS


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
