"""What must not change between the parts of a run. Imports no torch."""

from __future__ import annotations

from typing import Any

from signfuse_dist.config import RunConfig

# What may change: nothing here touches the numbers of a step, beyond rounding where memory made it
# necessary.
FREE_ON_RESUME = (
    "train.num_workers",
    "train.max_broken_share",
    "train.log_steps",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.output",
    "data.shard_cache",
    "data.shard_cache_gb",
    "model.visual_chunk",
    "model.visual_checkpoint",
)


def flat(run: RunConfig) -> dict[str, Any]:
    """Return every value of a run by ``section.key``, and its name."""
    sections = run.to_dict()
    name = sections.pop("name")
    return {
        "name": name,
        **{f"{s}.{k}": v for s, part in sections.items() for k, v in part.items()},
    }


def fixed(run: RunConfig) -> dict[str, Any]:
    """Return what must not change between the parts of a run, by ``section.key``."""
    return {
        key: value
        for key, value in flat(run).items()
        if key not in FREE_ON_RESUME and not key.startswith("evaluation.")
    }
