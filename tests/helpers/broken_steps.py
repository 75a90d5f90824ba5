"""A little model, and losses and gradients that are not finite for the clips that a test names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from helpers.lone_objective import LoneObjective  # tests/helpers/lone_objective.py
from helpers.model_factory import draw_clips, join
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine.loop import Loop, Step
from signfuse_dist.engine.timing import Marks
from signfuse_dist.model.norm import BatchNorm
from signfuse_dist.plan import Plan, make_plan

LOSS, GRADIENT, INPUT = "bad loss", "bad gradient", "bad input"


class Little(nn.Module):
    """A norm with statistics of all processes, and a line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = BatchNorm(2, "sync")
        self.line = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(len(x), 1, dtype=torch.bool)
        return self.line(self.norm(x[:, :, None], mask)[:, :, 0])


class Breaking(LoneObjective):
    """A mean square, and what the clip's name says."""

    def __call__(
        self, model: nn.Module, batch: SignBatch, compared: None = None
    ) -> dict[str, Tensor]:
        x = batch.pose.mean(dim=(1, 2))
        total = model(x * float("nan") if INPUT in batch.ids else x).square().sum()
        if GRADIENT in batch.ids:  # the square root of 0 is 0, its slope is not finite
            total = total + (total - total).sqrt()
        if LOSS in batch.ids:  # and its gradient is finite
            total = total + float("inf")
        return {"total": total}


def batches(steps: Sequence[str]) -> Iterator[Any]:
    """Yield two clips a step: one named after the step, one with the name that is given."""
    for number, name in enumerate(steps):
        batch = join(draw_clips([2, 3], seed=number))
        yield replace(batch, ids=(f"clip {number + 1}", name))


def little_loop(
    accelerator: Accelerator, folder: Path, plan: Plan, train: TrainConfig
) -> tuple[Loop, nn.Module]:
    """Return the loop over a little model, and the model as it is prepared."""
    model = Little()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    stage = StageConfig(name="contrastive", epochs=1, learning_rate=1e-2, warmup_epochs=0)
    step = Step(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        objective=Breaking(),
        plan=plan,
        stage=stage,
        train=train,
    )
    return Loop(step=step, folder=folder, marks=Marks(), identity={}), prepared


def little_plan(num_steps: int, world_size: int, **changes: Any) -> tuple[Plan, TrainConfig]:
    """Return a plan of two clips a step on each process; every step has a checkpoint and a line."""
    train = TrainConfig(
        micro_batch_size=2,
        global_batch_size=2 * world_size,
        precision="fp32",
        gradient_clipping=1.0,
        log_steps=1,
        checkpoint_steps=1,
        keep_checkpoints=num_steps,
        **changes,
    )
    stage = StageConfig(name="contrastive", epochs=1, learning_rate=1e-2, warmup_epochs=0)
    return make_plan(2 * world_size * num_steps, stage, train, world_size), train
