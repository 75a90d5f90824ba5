"""The parameters of every row of the ablations, from models without memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig

from signfuse_dist.ablation.rows import Ablation, AblationRow, read_ablations
from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.data.blended import find_vector_dim
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.building import build_fusion
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.preflight.aside import answer_aside
from signfuse_dist.sections import build_section

COMPONENTS = ("visual", "skeletal", "fusion", "temporal", "adapter")


def count_rows(names: str, experiment: str, overrides: Sequence[str]) -> str:
    """Return a table: each row, the stages it trains, and the parameters of its components.

    ``names`` are those of :func:`~signfuse_dist.ablation.rows.read_ablations`. The frozen
    LLM and LoRA are left out. Raises UserError when the experiment, or a row on it, is no valid
    configuration.
    """
    rows: list[tuple[str, ...]] = [("", "", "stages", *COMPONENTS, "total")]
    for ablation in read_ablations(names):
        for row in ablation.rows:
            runs = load_stages(experiment, [*overrides, *row.overrides])
            rows.append(_row(ablation, row, runs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def count(run: RunConfig) -> dict[str, int]:
    """Return the parameters of each component of a run's model, without LLM and LoRA.

    d_LLM is read from the LLM's configuration, not typed; no weights are loaded.
    """
    with torch.device("meta"):
        llm, dim = (read_llm_dim(run.model), 1.0), find_vector_dim(run)
        return count_parameters(SignFuse(run.model, llm, vector_dim=dim))


def _row(ablation: Ablation, row: AblationRow, runs: Sequence[RunConfig]) -> tuple[str, ...]:
    counts = count(runs[-1])
    return (
        ablation.name,
        row.name,
        ", ".join(run.stage.name for run in runs),
        *(f"{counts.get(name, 0):,}" for name in COMPONENTS),
        f"{sum(counts.values()):,}",
    )


def describe(experiment: str, overrides: Sequence[str]) -> str:
    """Return the parameters of each component, from a model on the meta device.

    No weights are loaded. This imports torch.
    """
    counts = count(load_stages(experiment, overrides)[-1])
    counts["total without LLM and LoRA"] = sum(counts.values())
    return "\n".join(f"  {name:27s} {value:>12,}" for name, value in counts.items())


def read_llm_dim(config: ModelConfig) -> int:
    """Return d_LLM from the LLM's configuration; raise UserError when that is not there."""
    try:
        known = AutoConfig.from_pretrained(config.llm, revision=config.llm_revision)
    except (OSError, ValueError) as e:
        raise UserError(f"model.llm {config.llm!r}: its configuration cannot be read") from e
    return int(known.hidden_size)


def _fusion(section: Any) -> int:
    """Return the parameters of the fusion of a section ``model``, for ``signfuse check``."""
    errors: list[str] = []
    model = build_section("model", ModelConfig, section, errors)
    raise_together(errors, "the model cannot be built")
    assert model is not None
    with torch.device("meta"):
        fusion = build_fusion(model)
    return sum(p.numel() for p in fusion.parameters())


if __name__ == "__main__":
    answer_aside(_fusion)
