"""Training without an engine: one process, one batch a step, torch's AdamW and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from signfuse_dist.config import RunConfig
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.data.split import open_split
from signfuse_dist.engine.loop import make_optimizer, set_learning_rate
from signfuse_dist.model import saved
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import ClipFrames, MicroBatches, learning_rate, make_plan


def train_bare(run: RunConfig, model: Any, tokenizer: Any) -> tuple[dict[str, Tensor], int]:
    """Return the trained weights, and in how many steps gradients were clipped."""
    name = run.stage.name
    prepare(model, name, run.loss)
    set_mode(model, name)
    split = open_split(run.shards("train"), run.data)
    train = dataclasses.replace(run.train, micro_batch_size=run.train.global_batch_size)
    plan = make_plan(len(split), run.stage, train, 1)
    frames = ClipFrames(split.lengths, run.data.max_frames, run.augment, train.seed)
    dataset = ClipBatches(
        split, MicroBatches(plan, train.seed, frames.counts, 0, 0), frames, tokenizer.encode
    )
    objective = StageObjective(name, run.loss)
    optimizer = make_optimizer(model, run.stage.learning_rate, train.weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    clipped = 0
    for step in range(plan.total_steps):
        set_learning_rate(optimizer, learning_rate(step, plan, run.stage.learning_rate))
        batch = dataset[step]
        sums, counts = objective(model, batch), objective.counts(batch)
        optimizer.zero_grad()
        torch.stack([objective.weights[n] * sums[n] / counts[n] for n in sums]).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, train.gradient_clipping)
        clipped += int(norm > train.gradient_clipping)
        optimizer.step()
    adapter = get_peft_model_state_dict(model.language_model.model)
    return saved.own_state(model) | adapter, clipped
