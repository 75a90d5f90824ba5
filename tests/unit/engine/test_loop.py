"""What the loop says of a run of the real model: every figure, and no wait for the device."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.model_factory import draw_clips, join, small_model
from signfuse_dist.config import LossConfig, StageConfig, TrainConfig
from signfuse_dist.engine.loop import Loop, Step, make_optimizer
from signfuse_dist.engine.objective import Meter
from signfuse_dist.engine.timing import Marks
from signfuse_dist.model.flops import COMPONENTS, StepFlops, components
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import make_plan

STEPS, LOG_STEPS, PEAK = 8, 4, 1e12
STAGE = StageConfig(name="finetune", epochs=1, learning_rate=1e-3, warmup_epochs=0)
TRAIN = TrainConfig(
    micro_batch_size=2,
    global_batch_size=2,
    precision="fp32",
    gradient_clipping=1.0,
    log_steps=LOG_STEPS,
    checkpoint_steps=100,
)


class _Batch:
    """A batch on the host; what is copied to the device is marked as there."""

    def __init__(self) -> None:
        self.inner = join(draw_clips([9, 4]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def to(self, device: torch.device) -> Any:
        copies = {
            f.name: _mark(getattr(self.inner, f.name).clone())
            for f in fields(self.inner)
            if isinstance(getattr(self.inner, f.name), Tensor)
        }
        return replace(self.inner, **copies)


def _mark(tensor: Tensor) -> Tensor:
    tensor.on_device = True  # type: ignore[attr-defined]
    return tensor


class _Reads(TorchDispatchMode):
    """Follows what is computed from tensors of the device, and counts reads that the engine makes.

    On a GPU each of them would wait for all that is queued.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step, self.reads = 0, Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        if any(getattr(x, "on_device", False) for x in flat if isinstance(x, Tensor)):
            if func is torch.ops.aten._local_scalar_dense.default and _engine_asked():
                self.reads[self.step] += 1
            for result in torch.utils._pytree.tree_leaves(out):
                if isinstance(result, Tensor):
                    _mark(result)
        return out


def _engine_asked() -> bool:
    """Whether the engine reads, other than to decide that a step is finite and may be taken.

    That one waits once a step under plain DDP; DeepSpeed has waited for it already.
    """
    frame: Any = sys._getframe(1)
    while "/signfuse_dist/" not in frame.f_code.co_filename:
        frame = frame.f_back
    path = frame.f_code.co_filename
    return "/signfuse_dist/engine/" in path and not path.endswith("/guards.py")


def run(folder: Path, reads: _Reads | None = None, meter: Meter | None = None) -> None:
    model = small_model()
    prepare(model, "finetune", LossConfig())
    for tensor in (*model.parameters(), *model.buffers()):
        _mark(tensor)
    objective = StageObjective("finetune", LossConfig())
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, make_optimizer(model, 1e-3, 0.01))
    plan = make_plan(2 * STEPS, STAGE, TRAIN, 1)
    if meter is None:
        cost = StepFlops(model, objective.contrastive_features, objective.language)
        meter = Meter(components(model), cost, PEAK, {"temperature": 0.07})

    def batches() -> Iterator[Any]:
        while True:
            if reads is not None:
                reads.step += 1
            yield _Batch()

    step = Step(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        objective=objective,
        plan=plan,
        stage=STAGE,
        train=TRAIN,
    )
    loop = Loop(step=step, folder=folder, marks=Marks(), identity={}, meter=meter)
    assert loop.run(batches(), 0, lambda: set_mode(model, "finetune"))


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, _Reads, str]:
    folder = tmp_path_factory.mktemp("run")
    with _Reads() as reads:
        run(folder, reads)
    return folder, reads, ""


def test_a_step_that_does_not_log_reads_nothing_from_the_device(
    watched: tuple[Path, _Reads, str],
) -> None:
    _, reads, _ = watched
    assert set(reads.reads) == {LOG_STEPS, STEPS}, reads.reads


def test_a_line_has_losses_rates_memory_balance_and_costs_of_each_component(
    watched: tuple[Path, _Reads, str],
) -> None:
    found = lines(watched[0])
    assert [line["step"] for line in found] == [LOG_STEPS, STEPS]
    for line in found:
        wanted = {
            "total",
            "contrastive",
            "language",
            "alignment",
            "learning_rate",
            "gradient_norm",
            "temperature",
            "clips_per_second",
            "frames_per_second",
            "frames_per_second_per_device",
            "seconds_per_step",
            "data_wait",
            "balance",
            "peak_memory_gb",
            "teraflops_per_second_per_device",
            "mfu",
            "skipped",
            "optimizer/seconds",
            "other/seconds",
            *(f"{name}/{what}" for name in COMPONENTS for what in ("seconds", "teraflops", "mfu")),
        }
        assert wanted <= line.keys()
        # 9 and 4 frames: a picture of each counts 3, and all else has 9 places for both.
        assert line["balance"] == pytest.approx((13 + 3 * 13) / (18 + 3 * 13))
        assert 0.1 < line["peak_memory_gb"] < 100
        assert line["skipped"] == 0
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))


def test_times_of_the_parts_add_up_to_the_step_and_costs_to_the_whole(
    watched: tuple[Path, _Reads, str],
) -> None:
    for line in lines(watched[0]):
        parts = sum(v for k, v in line.items() if k.endswith("/seconds"))
        assert parts == pytest.approx(line["seconds_per_step"], rel=0.02)
        operations = sum(line[f"{name}/teraflops"] for name in COMPONENTS) * 1e12
        rate = operations / line["seconds_per_step"]
        assert line["teraflops_per_second_per_device"] * 1e12 == pytest.approx(rate, rel=1e-6)
        assert line["mfu"] == pytest.approx(rate / PEAK, rel=1e-6)
        share = line["visual/teraflops"] * 1e12 / line["visual/seconds"] / PEAK
        assert line["visual/mfu"] == pytest.approx(share, rel=1e-6)


def test_the_start_is_broken_down_once(watched: tuple[Path, _Reads, str]) -> None:
    parts = json.loads((watched[0] / "startup.json").read_text(encoding="utf-8"))
    assert {"imports", "first batch", "first step"} <= parts.keys()
    assert parts.pop("total") == pytest.approx(sum(parts.values()), abs=0.01)


def test_without_components_the_rest_is_said_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, None, Meter())
    line = lines(tmp_path)[-1]
    assert "mfu" not in line
    assert line["other/seconds"] + line["optimizer/seconds"] == pytest.approx(
        line["seconds_per_step"], rel=0.02
    )
    printed = "".join(capsys.readouterr())
    assert f"step {STEPS}, epoch 1, total" in printed
    assert printed.count("first step after") == 1
