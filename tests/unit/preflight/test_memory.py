"""The arithmetic of parameters and activations is that of the model and of measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.model_factory import small_config, tiny_llama
from helpers.repository import ROOT
from signfuse_dist.ablation.rows import read_ablation
from signfuse_dist.config import LossConfig, ModelConfig, RunConfig, StageName
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.cmfa import FusionLayer
from signfuse_dist.model.llm import add_lora
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.objective import prepare
from signfuse_dist.preflight import memory
from signfuse_dist.preflight.check import Target, check_job
from signfuse_dist.preflight.llm_files import LLMFiles

LLM_DIM = 576


def runs(*words: str) -> list[RunConfig]:
    return load_stages("demo", ["data=table", "model=smollm2_135m", *words])


def on_meta(config: ModelConfig) -> SignFuse:
    with torch.device("meta"):
        return SignFuse(config, (LLM_DIM, 1.0))


ABLATIONS = ROOT / "configs" / "ablation"
ROWS = [
    row
    for name in ("components", "fusion", "layers", "scales", "stages")
    for row in read_ablation(ABLATIONS / f"{name}.yaml").rows
]
WORDS = {row.overrides for row in ROWS} | {
    ("model.visual_backbone=resnet18", "model.visual_weights=null"),
    ("model.visual_backbone=resnet10", "model.visual_weights=null", "model.visual_width=16"),
    ("model.visual_norm=group", "model.norm=layer"),
    ("model.skeletal_channels=[512,512,512,512]", "model.ffn_multiplier=2"),
}


@pytest.mark.parametrize("words", sorted(WORDS), ids=" ".join)
def test_parameters_are_those_of_the_model(words: tuple[str, ...]) -> None:
    config = runs(*words)[-1].model
    expected = count_parameters(on_meta(config))
    assert memory.parameters(config, LLM_DIM) == expected


def with_name(config: ModelConfig, field: str, name: str) -> ModelConfig:
    """A configuration as one whose choices were extended, and nothing else was."""
    changed = replace(config)
    object.__setattr__(changed, field, name)
    return changed


def test_a_fusion_that_is_unknown_to_the_model_too_is_refused_by_name() -> None:
    """It is asked of the model, which has no such layer; nothing is counted as zero."""
    run = runs()[-1]
    config = with_name(run.model, "fusion", "gated_mean")
    with pytest.raises(UserError, match=r"model\.fusion=gated_mean cannot be built: .*gated_mean"):
        memory.parameters(config, LLM_DIM)
    changed = replace(run)
    object.__setattr__(changed, "model", config)
    findings = {f.what: f for f in check_job([changed], [], Target(1, None, 80.0))}
    assert findings["parameters of model.fusion=gated_mean"].level == "error"
    assert not any(what.startswith("memory of a GPU") for what in findings)


def test_a_layer_of_no_known_fusion_is_not_built() -> None:
    with pytest.raises(UserError, match=r"model\.fusion=gated_mean: no layer is built for it"):
        FusionLayer(8, 2, 16, "gated_mean")


def test_a_backbone_without_arithmetic_is_refused_by_name() -> None:
    config = with_name(runs()[-1].model, "visual_backbone", "resnet34")
    with pytest.raises(UserError, match="visual_backbone=resnet34"):
        memory.frame_values(config, 224)


@pytest.mark.parametrize("stage", ["contrastive", "alignment", "finetune"])
@pytest.mark.parametrize("features", ["unimodal", "streams", "attended"])
def test_trained_parameters_are_those_of_the_stage(stage: StageName, features: str) -> None:
    config, loss = runs()[0].model, replace(LossConfig(), contrastive_features=features)
    model = on_meta(config)
    prepare(model, stage, loss)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.count_trained(config, loss, stage, LLM_DIM, 0) == expected


def test_lora_is_that_of_peft() -> None:
    llm, config = tiny_llama(), small_config(lora_targets=None)
    files = LLMFiles(None, llm.config.to_dict())  # type: ignore[arg-type]
    adapted = add_lora(llm, config)
    expected = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert files.lora_parameters(config) == expected


# docs/benchmarks.md, ResNet-50 in float32, in MB: frames, by blocks, measured.
MEASURED = [(16, False, 1629), (32, False, 3007), (16, True, 880), (32, True, 1382)]


@pytest.mark.parametrize(("frames", "blocks", "measured"), MEASURED)
def test_activations_of_the_resnet_are_near_what_was_measured(
    frames: int, blocks: bool, measured: float
) -> None:
    config = replace(runs()[0].model, visual_checkpoint=blocks)
    estimated = frames * memory.frame_values(config, 224) * 4 / 1e6
    assert estimated == pytest.approx(measured, rel=0.25)
