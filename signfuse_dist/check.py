"""What a run would do, before it does it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from signfuse_dist.config import STAGES, RunConfig
from signfuse_dist.config_load import load_run
from signfuse_dist.data.manifest import load_manifest
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.plan import make_plan


def describe(experiment: str, overrides: Sequence[str], world_size: int) -> str:
    """Return the resolved run and the plan of each stage (or of the one that is overridden).

    Imports no torch. Raises UserError with every error of every stage.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size}: at least one process is needed")
    runs = _runs(experiment, overrides)
    folder = open_folder(runs[0].shards(runs[0].data.train_split))
    num_clips = load_manifest(folder).num_samples
    lines, errors = [_resolved(runs[0]), f"training split: {folder}, {num_clips} clips"], []
    for run in runs:
        lines.append(f"stage {run.stage.name} -> {run.folder}: learning rate "
                     f"{run.stage.learning_rate:g}, {run.stage.epochs} epochs")  # fmt: skip
        try:
            lines.append(make_plan(num_clips, run.stage, run.train, world_size).describe())
        except UserError as e:
            errors.append(str(e))
    raise_together(sorted(set(errors)), f"{experiment} on {world_size} processes cannot run")
    return "\n".join(lines)


def count(experiment: str, overrides: Sequence[str]) -> str:
    """Return the parameters of each component, from a model on the meta device.

    d_LLM is read from the LLM's configuration, not typed; no weights are loaded.
    """
    import torch
    from transformers import AutoConfig

    from signfuse_dist.model.signfuse import SignFuse, count_parameters

    config = _runs(experiment, overrides)[0].model
    try:
        llm_dim = AutoConfig.from_pretrained(config.llm).hidden_size
    except (OSError, ValueError) as e:
        raise UserError(f"model.llm {config.llm!r}: its configuration cannot be read") from e
    with torch.device("meta"):
        counts = count_parameters(SignFuse(config, (llm_dim, 1.0)))
    counts["total without LLM and LoRA"] = sum(counts.values())
    return "\n".join(f"  {name:27s} {value:>12,}" for name, value in counts.items())


def _runs(experiment: str, overrides: Sequence[str]) -> list[RunConfig]:
    stages = [word.partition("=")[2] for word in overrides if word.startswith("stage=")]
    others = [word for word in overrides if not word.startswith("stage=")]
    runs, errors = [], []
    for stage in stages or STAGES:
        try:
            runs.append(load_run(experiment, stage, others))
        except UserError as e:
            errors.append(str(e))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return runs


def _resolved(run: RunConfig) -> str:
    values = run.to_dict()
    values.pop("stage")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
