"""What may change between the parts of a run, and what must not. Imports no torch."""

from __future__ import annotations

from typing import Any

from signfuse_dist.config import RunConfig
from signfuse_dist.config_load import load_resolved
from signfuse_dist.errors import UserError

# What may change between the parts of a run: nothing here touches the numbers of a step, beyond
# rounding where memory made it necessary. Where the micro batch does, checkpoints hold it fast.
FREE_ON_RESUME = (
    "train.num_workers",
    "train.max_broken_share",
    "train.non_finite",
    "train.hang_seconds",
    "train.log_steps",
    "train.trackers",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.dev_epochs",
    "train.select",
    "train.micro_batch_size",
    "train.output",
    "data.shard_cache",
    "data.shard_cache_gb",
    "model.visual_chunk",
    "model.visual_checkpoint",
)


def refuse_other(run: RunConfig) -> None:
    """Raise UserError when the run folder holds a run of another configuration."""
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    before, now = fixed(load_resolved(path)), fixed(run)
    changed = [k for k in now if now[k] != before.get(k)]
    if changed:
        lines = [f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in changed]
        raise UserError(
            f"{run.folder} holds a run of another configuration ({'; '.join(lines)}): "
            f"a run folder is never overwritten; give train.output=FOLDER or remove it"
        )


def flat(run: RunConfig) -> dict[str, Any]:
    """Return every value of a run by ``section.key``, and its name."""
    sections = run.to_dict()
    name = sections.pop("name")
    values = {f"{s}.{k}": v for s, section in sections.items() for k, v in section.items()}
    return {"name": name, **values}


def fixed(run: RunConfig) -> dict[str, Any]:
    """Return what must not change between the parts of a run, by ``section.key``."""
    return {
        key: value
        for key, value in flat(run).items()
        if key not in FREE_ON_RESUME and not key.startswith("evaluation.")
    }
