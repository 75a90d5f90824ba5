"""Choices of the model and of the stages that contradict each other. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from signfuse_dist.config import SCALES, STAGES, LossConfig, ModelConfig, StageConfig, TrainConfig

# torch 2.15 on CPU corrupts the heap in the backward pass of a 1x1 convolution of stride 2 over 4
# channels in this layout; 8 and more are sound.
_CHANNELS_LAST_WIDTH = 8


def contradictions(sections: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the choices of a run's sections, each with the keys to change."""
    model: ModelConfig = sections["model"]
    loss: LossConfig = sections["loss"]
    return [
        *_of_scales(model),
        *_of_stages(sections["train"], sections["stage"]),
        *_of_selection(sections["train"]),
        *_of_pairs(model, loss, sections["train"]),
        *_of_summaries(model, loss),
        *_of_memory(model),
        *_of_features(sections),
    ]


def _in_order(chosen: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return list(chosen) == [name for name in known if name in chosen]


def _of_scales(model: ModelConfig) -> list[str]:
    errors = []
    if len(model.scale_kernels) != len(SCALES):
        errors.append(
            f"model.scale_kernels has {len(model.scale_kernels)} entries for the {len(SCALES)} "
            f"scales {', '.join(SCALES)}; model.scales says which of them there are"
        )
    if not _in_order(model.scales, SCALES):
        errors.append(
            f"model.scales {list(model.scales)}: each at most once, in the order {list(SCALES)}"
        )
    return errors


def _of_stages(train: TrainConfig, stage: StageConfig) -> list[str]:
    if not train.stages or not _in_order(train.stages, STAGES):
        return [
            f"train.stages {list(train.stages)}: at least one, each at most once, in the order "
            f"{list(STAGES)}"
        ]
    if stage.name not in train.stages:
        return [f"stage {stage.name} is not among train.stages {list(train.stages)}"]
    return []


def _of_selection(train: TrainConfig) -> list[str]:
    if train.select == "last" or train.dev_epochs:
        return []
    return ["train.select=best needs a development score: write train.dev_epochs=1 or more"]


def _of_pairs(model: ModelConfig, loss: LossConfig, train: TrainConfig) -> list[str]:
    """One stream gives Eq. 21 no pairs."""
    if model.streams == "both":
        return []
    why = f"model.streams={model.streams} leaves the contrastive loss (Eq. 21) without pairs"
    errors = []
    if "contrastive" in train.stages:
        left = [name for name in train.stages if name != "contrastive"]
        errors.append(f"{why}: write train.stages=[{','.join(left) or 'alignment,finetune'}]")
    if loss.contrastive_weight > 0:
        errors.append(f"{why}: write loss.contrastive_weight=0")
    return errors


def _of_summaries(model: ModelConfig, loss: LossConfig) -> list[str]:
    if loss.contrastive_features != "attended" or model.streams != "both":
        return []
    if model.fusion in ("cmfa", "no_gate") and model.fusion_layers > 0:
        return []
    return [
        f"loss.contrastive_features=attended compares O_{{v->s}} with O_{{s->v}} (Eq. 8-9), and "
        f"model.fusion={model.fusion} with model.fusion_layers={model.fusion_layers} has not both"
    ]


def _of_memory(model: ModelConfig) -> list[str]:
    errors = []
    if model.visual_norm in ("sync", "local"):
        for key in ("visual_chunk", "visual_checkpoint"):
            if getattr(model, key):
                errors.append(
                    f"model.{key}={getattr(model, key)} computes frames again in the backward "
                    f"pass, which is exact only when they do not depend on the batch: write "
                    f"model.visual_norm=frozen or group, not {model.visual_norm}"
                )
    if model.visual_channels_last and model.visual_width < _CHANNELS_LAST_WIDTH:
        errors.append(
            f"model.visual_channels_last=true needs model.visual_width of {_CHANNELS_LAST_WIDTH} "
            f"or more, not {model.visual_width}: torch's convolutions are unsound below"
        )
    return errors


def _of_features(sections: Mapping[str, Any]) -> list[str]:
    """Features can be kept only of encoders that do not change, and of frames that do not."""
    if sections["train"].features == "computed":
        return []
    errors = []
    if sections["stage"].name != "alignment":
        errors.append(
            f"train.features=cached is for stage alignment, whose encoders are frozen; in stage "
            f"{sections['stage'].name} they train: write train.features=computed"
        )
    augment = sections.get("augment")
    if augment is not None and any(dataclasses.asdict(augment).values()):
        errors.append(
            "train.features=cached keeps one set of features a clip, and augment.* changes each "
            "clip every epoch: write train.features=computed, or set augment.* to 0"
        )
    return errors
