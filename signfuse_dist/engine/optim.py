"""AdamW (section 4.2) over the parameters that train."""

from __future__ import annotations

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return torch's AdamW over the parameters of ``model`` that require a gradient.

    Paper: "weight decay 0.01". Here: not on biases and norm gains. Because: decay there pulls a
    norm's gain, which starts at the LLM's own scale, to zero without any regularising effect.
    Groups without a parameter are left out: DeepSpeed fails on them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Not fused, not foreach: one order of operations, whatever the sizes of the partitions.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=learning_rate, foreach=False, fused=False
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of every group; the schedule is a function of the step and has no state."""
    for group in optimizer.param_groups:
        group["lr"] = value
