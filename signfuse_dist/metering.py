"""What of SignFuse the engine's log divides time and operations into; an entry point's part."""

from __future__ import annotations

from collections.abc import Callable

import torch

from signfuse_dist.config import RunConfig
from signfuse_dist.engine.metrics import device_name, peak_flops
from signfuse_dist.engine.objective import Meter
from signfuse_dist.model.flops import StepFlops, components
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective


def meter_of(
    model: SignFuse, objective: StageObjective, run: RunConfig, device: torch.device
) -> Meter:
    """Return the components of a model whose stage is prepared, and what a batch costs in each."""
    features = objective.contrastive_features
    cost = StepFlops(model, features, objective.language)
    return Meter(
        components=components(model),
        cost=cost,
        uncounted=cost.uncounted,
        peak=peak_flops(device_name(device), run.train.precision),
        constants={} if features is None else {"temperature": run.loss.temperature},
    )


def say_what_is_unknown(meter: Meter, device: torch.device, say: Callable[[str], None]) -> None:
    """Say once why there will be no MFU, where there will be none."""
    for name, reason in meter.uncounted.items():
        say(
            f"no MFU, and no operations of {name}: its code does not run without memory, where "
            f"operations are counted: {reason}"
        )
    if meter.peak is None:
        say(
            f"no MFU: the peak of {device_name(device)} in this precision is not known "
            "(bf16 on the GPUs of signfuse_dist/engine/metrics.py); operations a second are logged"
        )
