"""What a run would do, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import yaml

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.config_load import load_stages
from signfuse_dist.data.manifest import load_manifest
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan, make_plan


class Described(NamedTuple):
    """A resolved experiment: as text, its stages, their plans, and what cannot be planned."""

    text: str
    runs: list[RunConfig]
    plans: list[Plan]
    errors: list[str]


def describe(experiment: str, overrides: Sequence[str], world_size: int) -> Described:
    """Return the resolved run, and the plan of each stage (or of the one that is overridden).

    Imports no torch. Raises UserError with every error of the configuration; a plan that cannot be
    is among ``errors``, and without a training split there is none.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size}: at least one process is needed")
    runs = load_stages(experiment, overrides)
    lines = [_resolved(runs[0]), *caveats(runs[0], world_size)]
    plans: list[Plan] = []
    errors: list[str] = []
    folder = open_folder(runs[0].shards(runs[0].data.train_split))
    try:
        num_clips = load_manifest(folder).num_samples
    except UserError:
        return Described("\n".join(lines), runs, [], [])  # preflight/data.py says why
    lines.append(f"training split: {folder}, {num_clips} clips")
    for run in runs:
        lines.append(f"stage {run.stage.name} -> {run.folder}: learning rate "
                     f"{run.stage.learning_rate:g}, {run.stage.epochs} epochs")  # fmt: skip
        try:
            plans.append(make_plan(num_clips, run.stage, run.train, world_size))
            lines.append(plans[-1].describe())
        except UserError as e:
            errors.append(str(e))
    return Described("\n".join(lines), runs, plans, sorted(set(errors)))


def caveats(run: RunConfig, world_size: int) -> list[str]:
    """Return what is allowed and yet makes a run on several processes depend on their number."""
    if world_size == 1:
        return []
    return [
        f"warning: {key}=local: each of the {world_size} processes takes batch statistics from "
        f"its own clips, so the result depends on the number of processes; those of the first are "
        f"saved ({key}=sync has those of all)"
        for key in ("model.norm", "model.visual_norm")
        if getattr(run.model, key.partition(".")[2]) == "local"
    ]


def count(experiment: str, overrides: Sequence[str]) -> str:
    """Return the parameters of each component, from a model on the meta device.

    No weights are loaded. This imports torch.
    """
    from signfuse_dist.bench.parameters import count as count_components

    counts = count_components(load_stages(experiment, overrides)[-1])
    counts["total without LLM and LoRA"] = sum(counts.values())
    return "\n".join(f"  {name:27s} {value:>12,}" for name, value in counts.items())


def read_llm_dim(config: ModelConfig) -> int:
    """Return d_LLM from the LLM's configuration; raise UserError when that is not there."""
    from transformers import AutoConfig

    try:
        known = AutoConfig.from_pretrained(config.llm, revision=config.llm_revision)
    except (OSError, ValueError) as e:
        raise UserError(f"model.llm {config.llm!r}: its configuration cannot be read") from e
    return int(known.hidden_size)


def _resolved(run: RunConfig) -> str:
    values = run.to_dict()
    values.pop("stage")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
