"""Section 3.7 as a table: what trains in each stage, and how its losses count. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from signfuse_dist.config import LossConfig, ModelConfig, PartName, StageConfig, StageName

# Parts of SignFuse that train; what of the `llm` does, is said by `model.llm_training`.
TRAINABLE: dict[StageName, tuple[PartName, ...]] = {
    "contrastive": ("visual", "skeletal", "fusion"),
    "alignment": ("fusion", "temporal", "adapter"),
    "finetune": ("visual", "skeletal", "fusion", "temporal", "adapter", "llm"),
}
_COMPONENTS = {"language_model": "llm"}  # components of SignFuse whose part has another name
# Part of CMFA that Eq. 21 reaches when its features are `attended`.
_ATTENDED = ("fusion.layers.0.visual_from_skeletal", "fusion.layers.0.skeletal_from_visual")


def previous(stage: StageName, used: Sequence[StageName]) -> StageName | None:
    """Return the stage that ``stage`` starts from: the one before it among those ``used``."""
    place = used.index(stage)
    return used[place - 1] if place else None


def needs_language_model(stage: StageName) -> bool:
    """Return whether the stage computes a language loss; the contrastive stage loads no LLM."""
    return stage != "contrastive"


def trains_llm(stage: StageName, model: ModelConfig) -> bool:
    """Return whether the stage trains the LLM's own weights."""
    return model.llm_training == "full" and "llm" in TRAINABLE[stage]


def trained_parts(stage: StageName, config: LossConfig, model: ModelConfig) -> tuple[str, ...]:
    """Return the parts of SignFuse that train: those of the table that a loss reaches.

    A part that the model does not have is left out, and the `llm` where it stays frozen.

    Paper: stage 1 trains CMFA. Here: not what Eq. 21 does not reach, all of CMFA for `streams`,
    all but the first layer's attention for `attended`. Because: a trained parameter without a
    gradient stops distributed training.
    """
    left_out = {
        "visual": model.streams == "skeletal",
        "skeletal": model.streams == "visual",
        "fusion": model.fusion_layers == 0,
        "temporal": not model.scales,
        "llm": model.llm_training == "frozen",
    }
    parts = [part for part in TRAINABLE[stage] if not left_out.get(part)]
    if stage != "contrastive" or config.contrastive_features == "unimodal":
        return (*parts,)
    reached = _ATTENDED if config.contrastive_features == "attended" else ()
    return (*(part for part in parts if part != "fusion"), *reached)


def rate_factor(parameter: str, config: StageConfig) -> float:
    """Return the factor of the learning rate of a parameter of SignFuse, by its name."""
    component = parameter.partition(".")[0]
    part = _COMPONENTS.get(component, component)
    return next((by for name, by in (config.rates or {}).items() if name == part), 1.0)


def loss_weights(stage: StageName, config: LossConfig) -> dict[str, float]:
    """Return how much each summed loss counts in the stage's total.

    ``distance`` is the squared distance of Eq. 22 and L_align = distance + language, so Eq. 23 as
    printed, L_LM + lambda_1 L_contra + lambda_2 L_align, counts L_LM 1 + lambda_2 times. With
    lambda_1 = 0 the contrastive loss is not computed.
    """
    if stage == "contrastive":
        return {"contrastive": 1.0}
    if stage == "alignment":
        return {"language": 1.0, "distance": 1.0}
    weights = {"language": 1.0 + config.alignment_weight, "distance": config.alignment_weight}
    if config.contrastive_weight > 0:
        weights["contrastive"] = config.contrastive_weight
    return weights
