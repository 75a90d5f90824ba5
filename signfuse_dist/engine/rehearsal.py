"""A step's passes before the first step, on the fullest micro batch, which change nothing.

What does not fit into a GPU's memory fails in the first minute then, and not in the hour in which
the longest clips meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from signfuse_dist.engine.objective import Objective, TrainingBatch


def rehearse(
    model: nn.Module,
    objective: Objective,
    batch: TrainingBatch,
    device: torch.device,
    bf16: bool,
) -> None:
    """Run a forward and backward pass of a batch on the host, and throw the result away.

    Every process calls this with as many clips: norms and Eq. 21 meet over all of them.

    Args:
        model: as it was before the accelerator wrapped it, in the mode of training. Gradients are
            asked for by name of the parameters, so no hook of DDP or DeepSpeed sees them.
        objective: what is minimised.
        batch: the fullest.
        device: where the model is.
        bf16: whether passes run under autocast to bfloat16.

    Raises torch.OutOfMemoryError where it does not fit. Weights, their gradients, buffers and the
    states of random generators are afterwards what they were.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    with _nothing_changed(model, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            sums = objective(model, batch.to(device))
            total = torch.stack([objective.weights[n] * value for n, value in sums.items()]).sum()
        torch.autograd.grad(total, trained, allow_unused=True)


@contextmanager
def _nothing_changed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put buffers and random states back at the end, also after an error."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
