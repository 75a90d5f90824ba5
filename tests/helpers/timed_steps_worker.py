"""One of the processes of test_timed_steps: a model whose parts take a known time, under an engine.

Run under a launcher. Prints the last line of the log as JSON, and beside it the bare loop's times:
the same model, losses and optimizer without engine and hooks, by a clock around each call.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from helpers.broken_steps import batches
from helpers.lone_objective import LoneObjective
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import processes
from signfuse_dist.engine.loop import Loop, Step
from signfuse_dist.engine.objective import Meter
from signfuse_dist.engine.timing import Marks
from signfuse_dist.model.flops import Flops
from signfuse_dist.plan import make_plan

STEPS, ACCUMULATION = 4, 2
FORWARD = {"visual": 0.03, "fusion": 0.05}
BACKWARD = {"visual": 0.06, "fusion": 0.04}
OPTIMIZER = 0.08
OPERATIONS = 1e9
PEAK = 1e12


class _Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, part: str) -> Tensor:
        time.sleep(FORWARD[part])
        ctx.part = part  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(BACKWARD[ctx.part])  # type: ignore[attr-defined]
        return grad, None


class Part(nn.Module):
    """A line that takes its part's time, forward and backward."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.line = name, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        # What waits comes last in the backward pass of the part.
        return self.line(_Waits.apply(x, self.name))


class Timed(nn.Module):
    """Two parts, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entry = nn.Linear(2, 2)
        self.visual, self.fusion = Part("visual"), Part("fusion")

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(self.visual(self.entry(x)))


class Squares(LoneObjective):
    """A mean square of the model's output."""

    def __call__(
        self, model: nn.Module, batch: SignBatch, compared: None = None
    ) -> dict[str, Tensor]:
        return {"total": model(batch.pose.mean(dim=(1, 2))).square().sum()}


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)
    optimizer.register_step_pre_hook(lambda *_: time.sleep(OPTIMIZER))
    return optimizer


def bare() -> float:
    """Return the seconds of a step without an engine, after one to warm up."""
    model, objective = Timed(), Squares()
    optimizer, source = _optimizer(model), batches(["x"] * STEPS * ACCUMULATION)
    for step in range(STEPS):
        if step == 1:
            began = time.perf_counter()
        for _ in range(ACCUMULATION):
            objective(model, next(source))["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / (STEPS - 1)


def main(folder: Path) -> None:
    """Train and print what the log says, beside the bare loop."""
    without = bare()
    train = TrainConfig(
        micro_batch_size=2,
        global_batch_size=2 * ACCUMULATION,
        precision="fp32",
        gradient_clipping=1.0,
        log_steps=1,
        checkpoint_steps=100,
    )
    stage = StageConfig(name="contrastive", epochs=1, learning_rate=1e-2, warmup_epochs=0)
    plan = make_plan(2 * ACCUMULATION * STEPS, stage, train, 1)
    accelerator, resolved = processes.start(plan, train)
    model = Timed()
    prepared, optimizer = accelerator.prepare(model, _optimizer(model))
    step = Step(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        objective=Squares(),
        plan=plan,
        stage=stage,
        train=train,
    )
    meter = Meter(
        components={"visual": (model.visual,), "fusion": (model.fusion,)},
        cost=lambda batch: dict.fromkeys(FORWARD, Flops(OPERATIONS, 2 * OPERATIONS)),
        peak=PEAK,
    )
    folder.mkdir()
    loop = Loop(step=step, folder=folder, marks=Marks(), identity={}, meter=meter)
    assert loop.run(batches(["x"] * STEPS * ACCUMULATION), 0, prepared.train)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    engine = "plain" if resolved is None else "zero2"
    print(json.dumps({"engine": engine, "bare": without, "log": json.loads(lines[-2])}))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
